"""The layout: who may import whom, what is public, and how quick the command line answers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import segmint

SOURCE = Path(segmint.__file__).parent
FLOORS = [
    {"types", "seeds", "config", "ranks", "locks", "cluster"},
    {"data", "nets", "functional"},
    {"methods"},
    {"training"},
    {"inference"},
    {"evaluation"},
    {"study"},
    {"serve", "cli", "demo", "__main__"},
]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "segmint":
            found |= {node.module} if node.module != "segmint" else {f"segmint.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "segmint"}
    return found - {"segmint"}


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def files() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_nobody_imports_from_a_floor_above(path: Path):
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for module in imports(path):
        other = module.split(".")[1]
        assert floor_of(other) <= floor_of(own), f"{path} imports {module}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_is_much_over_400_lines(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 420


def test_methods_do_not_import_each_other_and_nobody_above_imports_one():
    members = {path.stem for path in (SOURCE / "methods").glob("*.py")} - {"__init__", "method"}
    for path in files():
        for module in imports(path):
            parts = module.split(".")
            assert not (parts[1] == "methods" and parts[-1] in members), f"{path} imports {module}"


def test_types_imports_nothing_of_ours():
    assert imports(SOURCE / "types.py") == set()


def test_the_public_names_are_these():
    assert set(segmint.__all__) == {
        "IGNORE", "Batch", "Data", "Method", "Prediction", "Run", "Seeds", "SegmintError", "assay", "build", "check",
        "compare", "convert", "evaluate", "generate", "load", "measure", "open", "predict", "report", "resume", "save",
        "train",
    }  # fmt: skip
    for name in segmint.__all__:
        assert getattr(segmint, name).__doc__ or name == "IGNORE"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        segmint.nonsense  # noqa: B018


def test_help_needs_no_torch():
    code = "import sys; sys.argv = ['segmint', '--help']\nfrom segmint.cli import app\n"
    code += "try: app()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules, 'help imports torch'"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
