"""The tab that segments an image or a video: overlay, areas, doubt, and the alternatives one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from segmint.data.classes import Classes
from segmint.data.frames import VIDEO_SUFFIXES, open_frames
from segmint.data.io import IMAGE_SUFFIXES, Array, Bytes
from segmint.data.masks import write_mask
from segmint.data.video import write_video
from segmint.evaluation.pictures import heat
from segmint.inference.outputs import blend
from segmint.inference.video import MEMORY, Smoother
from segmint.serve.limits import naming, read_uploaded_image
from segmint.serve.models import Model, Models, as_channels
from segmint.serve.page import parts
from segmint.serve.settings import Settings
from segmint.types import Prediction, SegmintError

FRAMES = 300
"""Frames of a video that are segmented at most."""

MASK, DOUBT, NOTHING = "Mask", "Uncertainty", "Image alone"

SHOW = """(chosen) => document.querySelectorAll('#segment-view .layer').forEach(
    layer => layer.classList.toggle('shown', layer.dataset.name === chosen))"""
FADE = "(percent) => document.documentElement.style.setProperty('--mask-opacity', percent / 100)"

EMPTY = '<div class="empty">Drop an image or a video on the left, and its mask is shown here.</div>'


def tab(models: Models, settings: Settings) -> None:
    """Build the tab, inside a Gradio context."""
    import gradio

    names = models.able("segment")
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=1, min_width=280):
            model = gradio.Dropdown(list(names), value=names[0], label="Model", visible=len(names) > 1)
            file = gradio.File(
                label="Image or video",
                file_types=[*IMAGE_SUFFIXES, *VIDEO_SUFFIXES],
                height=150,
                elem_id="segment-file",
            )
            draws = gradio.Slider(
                1,
                settings.draws,
                value=models[names[0]].usual_draws,
                step=1,
                label="Draws",
                info="how many masks to draw, to see what the image leaves open",
                visible="draws" in models[names[0]].jobs,
                elem_id="segment-draws",
            )
            opacity = gradio.Slider(0, 100, value=50, step=1, label="Opacity, %", elem_id="segment-opacity")
            show = gradio.Radio([MASK], value=MASK, label="Show", visible=False, elem_id="segment-show")
            download = gradio.DownloadButton("Download mask", visible=False, elem_id="segment-download")
        with gradio.Column(scale=2, min_width=380):
            notice = parts.notice("segment")
            view = parts.html(EMPTY, elem_id="segment-view")
            film = gradio.Video(
                visible=False, label="Overlay", height=560, elem_id="segment-film", buttons=["download"]
            )
            facts = parts.html(elem_id="segment-facts")
    opacity.change(None, opacity, js=FADE, api_visibility="private")
    show.change(None, show, js=SHOW, api_visibility="private")

    shown = [view, film, facts, opacity, show, download]
    empty = (
        (view, gradio.update(value=EMPTY, visible=True)),
        (opacity, gradio.update(visible=True)),
        (film, gradio.update(value=None, visible=False)),
        (facts, ""),
        (show, gradio.update(visible=False)),
        (download, gradio.update(visible=False)),
    )

    bar = gradio.Progress()

    @parts.speaking(notice, *empty)
    def segment(name: str, path: str | None, count: float, progress: Any = bar) -> dict[Any, Any]:
        if not path:
            return dict(empty)
        chosen = models[name]
        number = parts.whole(count, 1, settings.draws, "Draws") if "draws" in chosen.jobs else None
        if Path(path).suffix.lower() in VIDEO_SUFFIXES:
            film_path, found, note = segment_video(chosen, Path(path), settings, number, progress)
            return {
                **dict(empty),
                view: gradio.update(value="", visible=False),
                opacity: gradio.update(visible=False),
                film: gradio.update(value=str(film_path), visible=True),
                facts: parts.message(note, "good") + parts.legend(chosen.classes, found),
            }
        prediction = segment_image(models, name, Path(path), settings, number)
        layers = layers_of(prediction)
        target = parts.scratch(f"{parts.stem(path)}-mask.png")
        write_mask(target, prediction.labels.numpy(), chosen.classes)
        labels = [MASK, *(label for label, _ in layers if label != MASK), NOTHING]
        return {
            **dict(empty),
            view: gradio.update(value=viewer(prediction, layers), visible=True),
            facts: facts_of(prediction, chosen.classes),
            show: gradio.update(choices=labels, value=MASK, visible=True),
            download: gradio.update(value=str(target), visible=True),
        }

    @parts.speaking(notice)
    def choose(name: str) -> dict[Any, Any]:
        chosen = models[name]
        return {draws: gradio.update(visible="draws" in chosen.jobs, value=chosen.usual_draws)}

    run = {"fn": segment, "inputs": [model, file, draws], "outputs": [notice, *shown], "api_visibility": "private"}
    file.change(**run, show_progress_on=[view])
    draws.release(**run, show_progress_on=[view])
    changed = model.change(choose, model, [notice, draws], api_visibility="private")
    changed.then(**run, show_progress_on=[view])


def segment_image(models: Models, name: str, path: Path, settings: Settings, draws: int | None) -> Prediction:
    """Segment a file that was uploaded.

    Raises:
        SegmintError, RefusedError: it is no image, too large, or damaged.
    """
    image = read_uploaded_image(path, path.name, settings, models[name].run.settings.depth)
    return models.segment(name, image, draws=draws)


def layers_of(prediction: Prediction) -> list[tuple[str, str]]:
    """What can be laid over the image, each with its name: the mask, the doubt, and the alternatives if several."""
    layers = [(MASK, parts.transparent(prediction.labels.numpy(), prediction.colors))]
    top = float(np.log(max(2, len(prediction.names))))
    layers.append((DOUBT, parts.png(parts.smaller(parts.picture_of(heat(prediction.uncertainty.numpy(), top))))))
    if len(prediction.alternatives) > 1:
        for number, other in enumerate(prediction.alternatives, 1):
            label = f"Alternative {number}: {100 * other.weight:.0f}%"
            layers.append((label, parts.transparent(other.labels.numpy(), prediction.colors)))
    return layers


def viewer(prediction: Prediction, layers: list[tuple[str, str]]) -> str:
    """The image with the layers over it, of which one is shown."""
    pixels = prediction.image.numpy()
    crisp = " crisp" if max(pixels.shape[:2]) <= 256 else ""
    over = "".join(
        f'<img class="layer{crisp}{" shown" if name == MASK else ""}" data-name="{escape(name)}" src="{url}"'
        f' alt="{escape(name)}">'
        for name, url in layers
    )
    width, height = pixels.shape[1], pixels.shape[0]
    return (
        f'<div class="viewer" style="aspect-ratio:{width}/{height};--ratio:{width / height:.4f}">'
        f'<img class="base{crisp}" src="{parts.photo(pixels)}" alt="image">{over}</div>'
    )


def facts_of(prediction: Prediction, classes: Classes) -> str:
    """Areas of the classes, and how good the mask may be expected to be."""
    counts = np.bincount(prediction.labels.numpy().ravel(), minlength=len(classes))
    total = int(counts.sum())
    rows = [
        ("Size", f"{prediction.labels.shape[1]} x {prediction.labels.shape[0]} pixels"),
        ("Expected Dice of this mask", f"{prediction.expected_dice:.3f}"),
        ("Mean probability of the class shown", f"{float(prediction.probabilities.amax(0).mean()):.3f}"),
    ]
    most = float(np.log(max(2, len(classes))))
    rows.append(
        (f"Mean uncertainty (entropy in nats, at most {most:.2f})", f"{float(prediction.uncertainty.mean()):.3f}")
    )
    if len(prediction.draws) > 1:
        rows.append(("Masks drawn", f"{len(prediction.draws)}, of which {len(prediction.alternatives)} distinct"))
    areas = [(int(count), int(count) / total) for count in counts]
    return parts.legend(classes, areas) + parts.table(rows)


def segment_video(
    model: Model, path: Path, settings: Settings, draws: int | None, progress: Any
) -> tuple[Path, list[tuple[int | None, float]], str]:
    """Segment a video, frame by frame, smoothed along the motion.

    Returns:
        The overlay as a video, the mean share of each class, and a sentence on what was done.

    Raises:
        SegmintError: it cannot be read.
        RefusedError: its frames are too large.
    """
    out = parts.scratch(f"{parts.stem(path)}-overlay.mp4")
    count, totals = model.settle_draws(draws), np.zeros(len(model.classes))
    done = 0
    with naming(path, path.name), open_frames(str(path), FRAMES) as frames:
        begun, smoother = time.monotonic(), Smoother(MEMORY)

        def pictures() -> Iterator[Bytes]:
            nonlocal done
            for frame in frames.pixels:
                if frame.shape[0] * frame.shape[1] > settings.pixels:
                    told = f"{frame.shape[1]} x {frame.shape[0]} pixels a frame"
                    raise SegmintError(
                        f"{path.name}: {told}, but {settings.megapixels:g} million at most are read here"
                    )
                labels = _labels(model, frame, count, smoother)
                totals[:] += np.bincount(labels.ravel(), minlength=len(totals))
                done += 1
                progress((done, frames.count or None), desc="Segmenting", unit="frames")
                yield blend(as_channels(frame, model.channels), labels, model.classes)

        write_video(out, pictures(), fps=max(1, round(frames.fps)))
        speed = done / max(1e-9, time.monotonic() - begun)
        more = f" (the first; {FRAMES} at most)" if done == FRAMES else ""
    note = f"{done} frames{more}, {speed:.1f} a second here; areas are means over them."
    shares: list[tuple[int | None, float]] = [(None, float(share)) for share in totals / totals.sum()]
    return out, shares, note


def _labels(model: Model, frame: Bytes, draws: int, smoother: Smoother) -> Array:
    """The mask of the next frame."""
    shown = model.shown(frame)
    found = smoother(shown, model.draw([shown], [0], draws)[0])
    return np.asarray(model.finish(frame, found, plausible=False).labels.numpy())
