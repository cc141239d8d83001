"""A resumed training ends with exactly the weights of an uninterrupted one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import segmint.training.train as loop
from segmint.methods.method import load
from segmint.training.checkpoint import load_state, read_log
from segmint.training.run import resume, train
from segmint.types import SegmintError

SETTINGS = {"batch_size": 4, "precision": "float32", "validate_every": 3, "save_every": 0.0}
SMALL = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8]}
CASES = {
    "supervised": ({"steps": 9}, {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16], "dropout": 0.3}),
    "consistency": (
        {"steps": 9},
        {**SMALL, "cutmix": 1.0, "feature_dropout": 0.5},
    ),
    "gan": ({"steps": 9}, {"image_discriminator": "convolutional", "width": 8, "warm_start": 3}),
    "vae": ({"steps": 9}, {"width": 8, "latent": 8}),
    "gmm": ({"epochs": 5}, {}),
    "cutpaste": ({"epochs": 5}, {"bank": 18}),
    "adversarial": ({"steps": 9}, {**SMALL, "width": 4, "self_taught_from": 3}),
    "denoise": ({"steps": 9}, SMALL),
    "stochastic": ({"steps": 9}, SMALL),
    "variational": ({"steps": 9}, {**SMALL, "balance": "geco", "kappa": 0.1}),
    "maskflow": ({"steps": 9}, SMALL),
    "flow": ({"steps": 9}, {"widths": [16, 16], "alignment": 0.0}),
    "spade": ({"steps": 9}, {"discriminator": "plain", "width": 4, "warm_start": 3}),
}


class StopAt:
    """Sends this process a signal when the figures of a step are reported, which here is after every step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def progress(self, step, steps, figures) -> None:
        if step >= self.step:
            self.step = 10**9
            os.kill(os.getpid(), self.number)


def start(shapes: Path, out: Path, name: str, watcher=None):
    training, method_settings = CASES[name]
    settings = {**SETTINGS, **training}
    loop._Training.REPORT = 1
    return train(shapes, method=name, out=out, settings=settings, watcher=watcher, **method_settings)


def same(a: Path, b: Path) -> None:
    left, right = load_state(a), load_state(b)
    assert left["step"] == right["step"]
    for part in ("method", "ema"):
        for key, value in left[part].items():
            assert torch.equal(value, right[part][key]), f"{part} {key}"
    for part, optimizer in left["optimizers"].items():
        for number, slots in optimizer["state"].items():
            for key, value in slots.items():
                other = right["optimizers"][part]["state"][number][key]
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other)), f"{part} {number} {key}"
    best, other = load(a).state_dict(), load(b).state_dict()
    for key, value in best.items():
        assert torch.equal(value, other[key]), f"model {key}"


@pytest.fixture(scope="module")
def whole(shapes: Path, tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole") / name
            start(shapes, made[name], name)
        return made[name]

    return get


@pytest.mark.parametrize("step", [1, 4, 7])
@pytest.mark.parametrize("name", CASES)
def test_stopped_by_sigterm_and_resumed(shapes: Path, whole, tmp_path: Path, name: str, step: int):
    uninterrupted = whole(name)
    run = start(shapes, tmp_path / name, name, StopAt(step, signal.SIGTERM))
    stopped = load_state(run.folder)
    assert step <= stopped["step"] < load_state(uninterrupted)["step"]
    resume(run.folder)
    same(uninterrupted, run.folder)


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed(shapes: Path, whole, tmp_path: Path, name: str):
    here = Path(__file__)
    code = (
        "import sys, importlib.util, signal\n"
        "from pathlib import Path\n"
        f"spec = importlib.util.spec_from_file_location('resuming', {str(here)!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "import torch; torch.set_num_threads(1)\n"
        f"module.start(Path({str(shapes)!r}), Path({str(tmp_path / name)!r}), {name!r}, "
        "module.StopAt(5, signal.SIGKILL))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resume(tmp_path / name)
    same(whole(name), tmp_path / name)


def test_a_finished_run_is_resumed_at_once(whole):
    folder = whole("vae")
    before = load_state(folder)["method"]
    resume(folder)
    assert all(torch.equal(value, before[key]) for key, value in load_state(folder)["method"].items())


def test_the_log_has_no_step_twice(shapes: Path, tmp_path: Path):
    run = start(shapes, tmp_path / "run", "supervised", StopAt(4, signal.SIGTERM))
    resume(run.folder)
    steps = [line["step"] for line in read_log(run.folder) if line["split"] == "val"]
    assert steps == sorted(set(steps)) == [3, 6, 9]


def test_changed_data_is_noticed(shapes: Path, tmp_path: Path):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    run = start(data, tmp_path / "run", "vae", StopAt(4, signal.SIGTERM))
    (data / "images" / "07.png").write_bytes((data / "images" / "08.png").read_bytes())
    with pytest.raises(SegmintError, match="have changed since this run began"):
        resume(run.folder)


def test_a_damaged_checkpoint_is_named(shapes: Path, tmp_path: Path):
    run = start(shapes, tmp_path / "run", "vae", StopAt(4, signal.SIGTERM))
    (run.folder / "state.pt").write_bytes(b"rubbish")
    with pytest.raises(SegmintError, match=r"state\.pt: damaged"):
        resume(run.folder)


def test_a_run_folder_is_not_overwritten(shapes: Path, whole):
    with pytest.raises(SegmintError, match="holds a run already"):
        start(shapes, whole("vae"), "vae")


def test_other_classes_are_refused(shapes: Path, tmp_path: Path):
    data = shutil.copytree(shapes, tmp_path / "data")
    run = start(data, tmp_path / "run", "supervised", StopAt(4, signal.SIGTERM))
    text = (data / "classes.yaml").read_text()
    (data / "classes.yaml").write_text(text.replace("square", "new").replace("disc", "square").replace("new", "disc"))
    with pytest.raises(SegmintError, match=r"its classes are not those that .*classes\.yaml says this run began with"):
        resume(run.folder)
