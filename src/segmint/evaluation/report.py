"""One self-contained HTML page from the JSON files and pictures that the other commands left."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from segmint import config
from segmint.evaluation import charts, doubt, sequences
from segmint.evaluation.files import read_json, read_lines
from segmint.types import SegmintError

MEASURES = {
    "miou": ("mIoU", "mean over classes of intersection over union"),
    "dice": ("Dice", "mean over classes of the Dice coefficient"),
    "accuracy": ("pixel accuracy", "share of pixels called right"),
    "boundary_f1": ("boundary F1", "how well outlines agree, within 0.75% of the picture's diagonal"),
    "ece": ("ECE", "expected calibration error, stated confidence against truth; lower is better"),
}
_NO_CURVE = {"step", "epoch", "seconds", "split", "images_per_second"}
_LAST = ("l1_norm", "l2_norm", "lr")


@dataclass
class RunPage:
    """What the page shows of one run folder; `missing` says in sentences what is not there."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    segmentations: dict[str, str] = field(default_factory=dict)
    doubt: dict[str, dict[str, Any]] = field(default_factory=dict)
    draws: dict[str, str] = field(default_factory=dict)
    samples: dict[str, str] = field(default_factory=dict)
    curves: str = ""
    missing: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The method, and what else it was trained on."""
        method = str(self.config.get("method", "unknown method"))
        synthetic = self.config.get("synthetic") or []
        folders = [synthetic] if isinstance(synthetic, str) else synthetic
        names = ", ".join(Path(str(folder)).name for folder in folders)
        return f"{method} + pairs in {names}" if names else method


@dataclass
class PairsPage:
    """What the page shows of one folder of generated pairs, or of generated sequences."""

    name: str
    facts: dict[str, Any]
    picture: str
    shares: str
    sequences: dict[str, Any] = field(default_factory=dict)
    strip: str = ""


def write_report(folder: str | Path) -> Path:
    """Write report.html: the run in a run folder, or the whole story of a folder of runs and generated pairs.

    The page needs no other file, no network and no script. Of a folder of runs it takes every run folder
    and every generated folder in it (two levels deep), comparison.json and data.json; what is missing is
    said in its place.

    Args:
        folder: a run folder of `segmint train`, or a folder that contains some.

    Returns:
        The path of report.html.

    Raises:
        SegmintError: there is nothing to report, or a file is damaged; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SegmintError(f"{folder}: no such folder; name a run folder, or a folder of runs")
    places = [folder] if _is_run(folder) else list(_below(folder))
    runs = [_read_run(place) for place in places if _is_run(place)]
    pairs = [_read_pairs(place) for place in _below(folder) if _is_generated(place) and not _is_generated(place.parent)]
    if _is_generated(folder):
        pairs.insert(0, _read_pairs(folder))
    if not runs and not pairs:
        raise SegmintError(f"{folder}: no run and no pairs here; name a run folder, or a folder of runs")
    data = _optional(folder / "data.json")
    comparison = _optional(folder / "comparison.json", "split", "images", "baseline", "others", "notes")
    page = (
        _environment()
        .get_template("report.html")
        .render(
            folder=folder.resolve().name,
            runs=runs,
            pairs=pairs,
            data=data,
            data_picture=_picture(folder / str(data["picture"])) if data.get("picture") else "",
            comparison=comparison,
            charts=_charts(comparison),
            table=_score_table(runs, comparison),
            classes=_class_table(runs, comparison),
            times=_times(runs, pairs, data, comparison),
            commands=_commands(data, comparison),
            versions=_versions(runs),
            measures=MEASURES,
            sequence_measures=sequences.MEASURES,
            sides=sequences.SIDES,
        )
    )
    config.write_atomic(folder / "report.html", page)
    return folder / "report.html"


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.yaml", "summary.json", "log.jsonl"))


def _is_generated(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("pairs.json", "sequences.json", "manifest.jsonl"))


def _below(folder: Path) -> Iterator[Path]:
    for child in _folders(folder):
        yield child
        yield from _folders(child)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _optional(path: Path, *keys: str) -> dict[str, Any]:
    """What a JSON file holds, {} if there is no such file.

    Raises:
        SegmintError: the file is damaged, or lacks one of the keys.
    """
    if not path.is_file():
        return {}
    value = read_json(path)
    _require(path, value, keys)
    return value


def _require(path: Path, value: Any, keys: Sequence[str], where: str = "") -> None:
    lacking = [key for key in keys if not isinstance(value, Mapping) or key not in value]
    if lacking:
        raise SegmintError(f"{path}: {where}lacks {', '.join(lacking)}; remove the file and make it again")


def _picture(path: Path) -> str:
    """A PNG, JPEG or SVG as an address that holds the picture itself; "" if there is no such file."""
    if not path.is_file():
        return ""
    kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".svg": "svg+xml"}.get(path.suffix.lower())
    if kind is None:
        raise SegmintError(f"{path}: not a picture that a page can hold; use PNG, JPEG or SVG")
    return _address(path.read_bytes(), kind)


def _address(content: bytes, kind: str = "svg+xml") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _read_run(folder: Path) -> RunPage:
    page = RunPage(folder.name)
    if (folder / "config.yaml").is_file():
        page.config = config.read_yaml(folder / "config.yaml")
    else:
        page.missing.append("config.yaml is missing: the settings are not known.")
    if (folder / "summary.json").is_file():
        page.summary = read_json(folder / "summary.json")
    else:
        page.missing.append("summary.json is missing: training has not ended yet, or was cut off.")
    if (folder / "log.jsonl").is_file():
        log = read_lines(folder / "log.jsonl")
        terms = _terms(log)
        if terms:
            page.curves = _address(charts.curves(log, terms, page.summary.get("best_step")))
        else:
            page.missing.append("log.jsonl holds no figures yet: there are no learning curves.")
    else:
        page.missing.append("log.jsonl is missing: there are no learning curves.")
    page.scores = _optional(folder / "metrics.json")
    for split, entry in page.scores.items():
        _require(folder / "metrics.json", entry, ("images", "note", "per_class", "seconds", *MEASURES), f"{split} ")
        told = doubt.tell(folder / "metrics.json", split, entry)
        page.doubt[split] = {**told, "chart": _address(told["chart"])} if told else {}
    for path in sorted((folder / "pictures").glob("*.png")):
        kind, _, split = path.stem.partition("-")
        if kind in ("segmentations", "draws"):
            (page.draws if kind == "draws" else page.segmentations)[split] = _picture(path)
        else:
            page.samples[path.stem.replace("-", " ").replace("_", " ")] = _picture(path)
    return page


def _terms(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """The numbers of a log that vary or matter, in the order in which they are shown."""
    seen = dict.fromkeys(key for line in log for key, value in line.items() if isinstance(value, int | float))
    found = [key for key in seen if key not in _NO_CURVE and not key.endswith("_train")]
    found = [key for key in found if key == "loss" or any(line.get(key) != line.get("loss") for line in log)]
    first = [key for key in ("loss", "miou") if key in found]
    last = [key for key in _LAST if key in found]
    return [*first, *(key for key in found if key not in first and key not in last), *last]


def _read_pairs(folder: Path) -> PairsPage:
    facts = _optional(folder / "pairs.json", "images", "diversity", "nearest_ratio", "near_duplicates", "repeats")
    shares = ""
    if facts.get("class_shares"):
        table = facts["class_shares"]
        series = {
            "real": np.array([100 * row["real"] for row in table.values()]),
            "generated": np.array([100 * row["generated"] for row in table.values()]),
        }
        shares = _address(charts.bar_chart(list(table), series, "% of labelled pixels"))
    told = _optional(folder / "sequences.json", "sequences", "frames", "paired", "notes", *sequences.SIDES)
    pictures = folder / "pictures"
    picture, strip = _picture(pictures / "pairs.png"), _picture(pictures / "strip.png")
    return PairsPage(folder.name, facts, picture, shares, told, strip)


def _charts(comparison: Mapping[str, Any]) -> dict[str, str]:
    """The differences of the comparison as pictures."""
    if not comparison:
        return {}
    others = comparison["others"]
    table = np.array([_row(other["difference"]["miou"]) for other in others]) * 100
    unit = "points of mIoU against the baseline"
    found = {"difference": _address(charts.interval_chart([other["label"] for other in others], table, unit))}
    arms = [comparison["baseline"], *others]
    series = {arm["label"]: np.array([_row(cell) for cell in arm["iou"].values()]) * 100 for arm in arms}
    found["classes"] = _address(charts.bar_chart(list(arms[0]["iou"]), series, "IoU in %"))
    return found


def _row(cell: Mapping[str, Any]) -> list[float]:
    return [math.nan if cell[key] is None else float(cell[key]) for key in ("value", "low", "high")]


def _score_table(runs: Sequence[RunPage], comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per strategy of the comparison; without one, per evaluated run and split."""
    if comparison:
        first = {**comparison["baseline"], "difference": {}, "verdict": "baseline"}
        return [{**row, "split": comparison["split"]} for row in (first, *comparison["others"])]
    return [
        {
            "label": run.title,
            "runs": [run.name],
            "split": f"{split}, with mirror images" if entry.get("mirror") else split,
            "scores": entry,
            "difference": {},
            "verdict": "",
        }
        for run in runs
        for split, entry in run.scores.items()
    ]


def _class_table(runs: Sequence[RunPage], comparison: Mapping[str, Any]) -> dict[str, Any]:
    """IoU per class: {"heads": labels, "rows": [(class, [(score, difference or None), ...]), ...]}."""
    if comparison:
        arms = [(arm["label"], arm["iou"], arm.get("per_class", {})) for arm in _arms(comparison)]
    else:
        arms = [
            (f"{run.title}, {split}", {name: row["iou"] for name, row in entry["per_class"].items()}, {})
            for run in runs
            for split, entry in run.scores.items()
        ]
    names = dict.fromkeys(name for _, scores, _ in arms for name in scores)
    rows = [(name, [(scores.get(name), changes.get(name)) for _, scores, changes in arms]) for name in names]
    return {"heads": [label for label, _, _ in arms], "rows": rows}


def _arms(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [comparison["baseline"], *comparison["others"]]


def _times(
    runs: Sequence[RunPage],
    pairs: Sequence[PairsPage],
    data: Mapping[str, Any],
    comparison: Mapping[str, Any],
) -> list[tuple[str, float]]:
    """Seconds per step of the job: as told in "timings", else as found in the results."""
    told = comparison.get("timings") or data.get("timings")
    if told:
        return [(str(row["step"]), float(row["seconds"])) for row in told]
    found: list[tuple[str, float]] = []
    for run in runs:
        if "seconds" in run.summary:
            found.append((f"train {run.name}", run.summary["seconds"]))
        for split, entry in run.scores.items():
            found.append((f"evaluate {run.name} on {split}", entry["seconds"]))
    found += [(f"look at {page.name}", page.facts["seconds"]) for page in pairs if "seconds" in page.facts]
    return found


def _commands(data: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[str]:
    told = comparison.get("commands") or data.get("commands") or []
    return [str(row["command"]) if isinstance(row, Mapping) else str(row) for row in told]


def _versions(runs: Sequence[RunPage]) -> dict[str, str]:
    found: dict[str, str] = {}
    for run in runs:
        found.update({str(key): str(value) for key, value in (run.summary.get("versions") or {}).items()})
        if run.summary.get("hardware"):
            found["hardware"] = str(run.summary["hardware"])
    return found


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("segmint.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        score=_score,
        change=_change,
        duration=duration,
        safeguards=safeguards,
        setting=_setting,
        number=_number,
        two=_two,
    )
    return environment


def _score(cell: Mapping[str, Any] | None) -> Markup:
    """An interval in percent: the value large, the bounds small."""
    if not cell or cell["value"] is None:
        return Markup('<span class="faint">–</span>')
    value, low, high = (100 * number for number in _row(cell))
    return Markup('{:.1f} <span class="range">{:.1f}–{:.1f}</span>').format(value, low, high)


def _change(cell: Mapping[str, Any] | None, higher_is_better: bool = True) -> Markup:
    """A difference in points, green or red where its interval leaves out zero."""
    if not cell or cell["value"] is None:
        return Markup("")
    value, low, high = (100 * number for number in _row(cell))
    good, bad = (low > 0, high < 0) if higher_is_better else (high < 0, low > 0)
    kind = "better" if good else "worse" if bad else "neither"
    figures = Markup('{:+.1f} <span class="range">[{:+.1f}, {:+.1f}]</span>').format(value, low, high)
    return Markup('<span class="change {}">{}</span>').format(kind, figures)


def duration(seconds: float) -> str:
    """Seconds in words: "9.5 s", "3 min 20 s", "1 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def safeguards(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings against overfitting, each in a word or two."""
    training = settings.get("training") or {}
    method = settings.get("method_settings") or {}
    patience = training.get("patience", 0)
    found = {
        "augmentation": training.get("augment", method.get("augment")),
        "dropout": method.get("dropout", training.get("dropout")),
        "L1": training.get("l1"),
        "L2": training.get("l2"),
        "weight decay": training.get("weight_decay"),
        "early stopping": f"after {patience} validations without gain" if patience else "off",
        "EMA": training.get("ema") or "off",
        "gradient clipping": training.get("clip") or "off",
    }
    return [(key, _setting(value)) for key, value in found.items() if value is not None]


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _setting(value: Any) -> str:
    """A setting as text: mappings and lists on one line, numbers short."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_setting(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value)) or "none"
    if value is None:
        return "not set"
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: Any) -> str:
    """A number as people write it: 1,234 or 0.123."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
