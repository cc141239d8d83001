"""The command that answers which strategy is worth it: study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segmint.cli.app import app, console, plain
from segmint.cli.options import size_of
from segmint.types import SegmintError


@app.command()
def study(
    source: Annotated[
        Path, typer.Argument(help="study.yaml, or its folder, or a data folder to write one for.", show_default=False)
    ],
    preset: Annotated[
        str | None,
        typer.Option(help="For a data folder: default, overfitting, losses or ambiguity.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The study's folder; else that of study.yaml, or runs/study-DATA.")
    ] = None,
    write_only: Annotated[
        bool, typer.Option("--write-only", help="Write study.yaml, say what it takes, and stop there.")
    ] = False,
    budgets: Annotated[str | None, typer.Option(help="For a data folder, e.g. 10,30,all.", show_default=False)] = None,
    baseline_budgets: Annotated[
        str | None, typer.Option(help="Further ones for the baseline alone.", show_default=False)
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="For a data folder: how many.", min=1, show_default=False)] = None,
    steps: Annotated[
        int | None, typer.Option(help="For a data folder: of every segmenter.", min=1, show_default=False)
    ] = None,
    size: Annotated[str | None, typer.Option(help="For a data folder: height x width, e.g. 96x128.")] = None,
    processes: Annotated[
        int | None, typer.Option(help="Trainings at a time; else as many as cores.", min=1, show_default=False)
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster that shares the folders; local: one here.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
) -> None:
    """Compare strategies on your data: which is worth it? Stopped in any way, the same command goes on."""
    from segmint.study.run import foretell, run_study

    chosen = {"budgets": budgets, "baseline_budgets": baseline_budgets, "seeds": seeds, "steps": steps, "size": size}
    folder = _folder_of(source, preset, out, chosen)
    if write_only:
        foretell(folder, processes=processes, console=console)
        console.print(f"run it with `segmint study {plain(str(folder))}`", highlight=False, soft_wrap=True)
        return
    ended = run_study(folder, processes=processes, ray=ray, retry_failed=retry_failed, console=console)
    if not ended:
        console.print(f"everything is saved; the same command goes on: {plain(str(folder))}", soft_wrap=True)
        raise typer.Exit(130)
    _tell(folder)


def _folder_of(source: Path, preset: str | None, out: Path | None, chosen: dict[str, Any]) -> Path:
    """The folder of the study, with study.yaml in it."""
    file = source / "study.yaml" if source.is_dir() else source
    if file.is_file():
        given = [key for key, value in {"preset": preset, **chosen}.items() if value is not None]
        if given:
            raise SegmintError(f"{_option(given[0])}: is for a data folder; {file} has its own, change it there")
        return _copied(file, out)
    if not source.is_dir():
        raise SegmintError(f"{source}: no such file or folder; name a study.yaml, or a data folder")
    return _written(source, preset, out, chosen)


def _copied(file: Path, out: Path | None) -> Path:
    """The folder of a study.yaml, or another with a copy of it."""
    from segmint.study.plan import read_study
    from segmint.study.presets import as_yaml
    from segmint.study.run import write_study

    asked = read_study(file)
    if out is None or out.resolve() == file.parent.resolve():
        return file.parent
    if not (out / "study.yaml").exists():
        write_study(asked, out, as_yaml(asked))
    elif read_study(out) != asked:
        raise SegmintError(f"{out / 'study.yaml'}: differs from {file}; run the one in the folder, or choose another")
    return out


def _written(source: Path, preset: str | None, out: Path | None, chosen: dict[str, Any]) -> Path:
    """The folder of the study of a data folder, whose study.yaml is written unless it is there."""
    from segmint.data.folder import open_folder
    from segmint.study.plan import check
    from segmint.study.presets import as_yaml, left_out
    from segmint.study.presets import preset as sensible
    from segmint.study.run import write_study

    told = "" if preset in (None, "default") else f"-{preset}"
    folder = out or Path("runs") / f"study-{source.resolve().name}{told}"
    if (folder / "study.yaml").exists():
        _check_asked(folder, source, {"preset": preset, **_changes(chosen)})
        console.print(f"going on with {plain(str(folder / 'study.yaml'))}", highlight=False, soft_wrap=True)
        return folder
    made = sensible(preset or "auto", open_folder(source), **_changes(chosen))
    check(made)
    path = write_study(made, folder, as_yaml(made, left_out(made)))
    console.print(f"written: {plain(str(path))}", highlight=False, soft_wrap=True)
    return folder


def _check_asked(folder: Path, source: Path, asked: dict[str, Any]) -> None:
    """That the study which is there is the one that is asked for now."""
    from segmint.study.plan import read_study

    file, known = folder / "study.yaml", read_study(folder)
    if Path(known.data).resolve() != source.resolve():
        raise SegmintError(f"{file}: is a study of {known.data}, not of {source}; choose another --out")
    for key, value in asked.items():
        if value is not None and getattr(known, key) != value:
            raise SegmintError(f"{_option(key)}: {file} says otherwise; change it there, or choose another --out")


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _changes(chosen: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key in ("budgets", "baseline_budgets"):
        if chosen[key] is not None:
            words = [word.strip() for word in chosen[key].split(",")]
            if any(word != "all" and not word.isdigit() for word in words):
                raise SegmintError(f"{_option(key)}: must be numbers or all, e.g. 10,30,all, not {chosen[key]!r}")
            changes[key] = [None if word == "all" else int(word) for word in words]
    if chosen["seeds"] is not None:
        changes["seeds"] = list(range(chosen["seeds"]))
    if chosen["steps"] is not None:
        changes["steps"] = chosen["steps"]
    if chosen["size"] is not None:
        changes["size"] = size_of(chosen["size"])
    return changes


def _tell(folder: Path) -> None:
    """What failed, and the answer."""
    from segmint.evaluation.files import read_json
    from segmint.study.outcomes import current_results
    from segmint.study.page import write_page
    from segmint.study.plan import read_study

    asked = read_study(folder)
    for result in current_results(asked, folder):
        if result.status in ("failed", "out of time"):
            words = f"{result.strategy}, budget {result.budget or 'all'}, seed {result.seed}: {result.reason}"
            console.print(f"[red]{result.status}:[/] {plain(words)}", highlight=False, soft_wrap=True)
    page = write_page(folder)
    answer = read_json(folder / "answer.json")
    console.print(f"[bold]{plain(str(answer.get('reason', '')))}[/]", highlight=False, soft_wrap=True)
    console.print(f"report: {page.resolve()}", highlight=False, soft_wrap=True)
