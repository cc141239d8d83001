"""What the tabs are made of, without a browser and without Gradio."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.exceptions import HTTPException

from segmint.data.classes import Classes
from segmint.data.folder import open_folder
from segmint.data.masks import read_mask, write_mask
from segmint.data.video import write_video
from segmint.evaluation.sorting import Decision
from segmint.serve.models import Models
from segmint.serve.page import painting, parts, reading, segmenting, sorting
from segmint.serve.page.streams import Ending
from segmint.serve.settings import Settings
from segmint.types import IGNORE, Alternative, Prediction, SegmintError

CLASSES = Classes.named(["ground", "a <b>"])


def opened(url: str) -> np.ndarray:
    head, _, code = url.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))


def test_a_handler_says_what_is_wrong_and_hides_the_rest(caplog: pytest.LogCaptureFixture):
    @parts.speaking("notice", ("view", "empty"))
    def handler(error: Exception | None) -> dict[str, str]:
        if error is not None:
            raise error
        return {"view": "full"}

    assert handler(None) == {"notice": "", "view": "full"}
    assert "mend &lt;it&gt;" in handler(SegmintError("mend <it>"))["notice"]
    assert handler(SegmintError("mend"))["view"] == "empty"
    assert "too large" in handler(HTTPException(413, "too large"))["notice"]
    assert not caplog.records
    with caplog.at_level(logging.ERROR):
        notice = handler(KeyError("secret"))["notice"]
    assert "KeyError" in notice
    assert "secret" not in notice
    assert caplog.records[0].exc_info


def test_pictures_are_as_they_were_but_for_very_large_photographs():
    numbers = np.random.default_rng(0)
    colored = numbers.integers(0, 256, (5, 7, 3), np.uint8)
    assert (opened(parts.photo(colored)) == colored).all()
    grey = numbers.integers(0, 256, (5, 7, 1), np.uint8)
    assert (opened(parts.photo(grey)) == grey).all()
    assert (opened(parts.png(grey)) == grey[..., 0]).all()
    large = opened(parts.photo(np.full((100, 3200, 3), 9, np.uint8)))
    assert large.shape[:2] == (50, parts.SHOWN)
    layer = opened(parts.transparent(np.array([[0, 1, IGNORE]]), ((1, 2, 3), (4, 5, 6))))
    assert layer.tolist() == [[[1, 2, 3, 255], [4, 5, 6, 255], [0, 0, 0, 0]]]


def test_legend_has_every_class_the_largest_first_and_no_markup_of_others():
    text = parts.legend(CLASSES, [(25, 0.25), (75, 0.75)])
    assert text.index("a &lt;b&gt;") < text.index("</i>ground")
    assert "75.0%" in text
    assert "<b>" not in parts.table([("<b>", "<i>")]) + parts.figure("data:,", "<b>", save_as='"<b>')


@pytest.mark.parametrize("value", [None, "1", 0, 9, 1.5, float("nan"), float("inf")])
def test_numbers_from_the_page_are_checked(value: object):
    with pytest.raises(SegmintError, match="Seed: must be a whole number, at least 1 and at most 8"):
        parts.whole(value, 1, 8, "Seed")


def test_files_to_download_are_removed_some_time_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    first, second = parts.scratch("mask.png"), parts.scratch("mask.png")
    assert first != second
    first.write_bytes(b"x")
    os.utime(first.parent, (1, 1))
    parts.scratch("mask.png")
    assert not first.parent.exists()
    assert second.parent.exists()


def test_a_board_gives_back_the_mask_that_it_was_given(models: Models):
    model = models["mixture"]
    mask = np.random.default_rng(0).choice([0, 1, 2, IGNORE], model.size).astype(np.uint8)
    board = json.loads(json.dumps(painting.board_of(mask, model)))
    assert board["names"] == ["ground", "square", "disc"]
    assert (painting.mask_of(board, model, Settings()) == mask).all()
    assert painting.board_of(painting.blank(model), model)["runs"] == [0, mask.size]


@pytest.mark.parametrize(
    "change",
    [
        {"runs": None},
        {"runs": [0]},
        {"runs": [0, 4]},
        {"runs": [3, 6]},
        {"runs": [-1, 6]},
        {"runs": [0, 6.0]},
        {"runs": [0, True, 0, 5]},
        {"runs": [0, 7, 0, -1]},
        {"runs": []},
        {"height": 0, "runs": []},
        {"height": 10**9},
        {"height": 3000, "width": 3000, "runs": [0, 9_000_000]},
        {"width": "3"},
        None,
    ],
)
def test_a_board_that_is_none_is_refused(models: Models, change: dict[str, object] | None):
    drawn = None if change is None else {"height": 2, "width": 3, "runs": [0, 6], **change}
    with pytest.raises(SegmintError, match="could not be read"):
        painting.mask_of(drawn, models["mixture"], Settings(megapixels=8))


def test_painting_gives_the_pictures_of_the_seeds(models: Models):
    model = models["mixture"]
    mask = painting.blank(model)
    mask[8:16, 8:16] = 1
    text = painting.painted(model, mask, range(3, 5), None)
    assert "seed 3" in text
    assert "seed 4" in text
    first = text.split('src="')[1].split('"')[0]
    assert (opened(first) == models.paint("mixture", mask, seed=3)).all()


def test_masks_of_the_data_are_taken_by_name_alone(shapes: Path, models: Models, tmp_path: Path):
    masks, classes = painting.DataMasks(shapes), models["mixture"].classes
    assert (masks.read("00", classes) == read_mask(shapes / "masks" / "00.png", classes)).all()
    with pytest.raises(SegmintError, match="no mask called"):
        masks.read("../classes", classes)
    with pytest.raises(SegmintError, match="not those of the model"):
        masks.read("00", CLASSES)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "1.png")
    (tmp_path / "masks").mkdir()
    with pytest.raises(SegmintError):
        painting.DataMasks(tmp_path)


def test_an_image_becomes_a_mask_to_paint(shapes: Path, models: Models):
    model = models["mixture"]
    image, mask = painting.traced(models, model, "mixture", shapes / "images" / "01.png", Settings())
    assert image.shape == (32, 24, 3)
    assert (mask == models.segment("mixture", image).labels.numpy()).all()


def test_layers_are_mask_doubt_and_the_alternatives_with_their_weights():
    labels = torch.zeros(4, 6, dtype=torch.uint8)
    flat = torch.full((2, 4, 6), 0.5)
    prediction = Prediction(
        labels=labels,
        probabilities=flat,
        uncertainty=torch.full((4, 6), 0.69),
        aleatoric=torch.zeros(4, 6),
        epistemic=None,
        errors=None,
        expected_dice=0.75,
        draws=labels.expand(4, 4, 6),
        alternatives=(Alternative(labels, 0.75), Alternative(labels + 1, 0.25)),
        image=torch.zeros(4, 6, 3, dtype=torch.uint8),
        names=CLASSES.names,
        colors=CLASSES.colors,
    )
    layers = segmenting.layers_of(prediction)
    assert [name for name, _ in layers] == ["Mask", "Uncertainty", "Alternative 1: 75%", "Alternative 2: 25%"]
    text = segmenting.viewer(prediction, layers)
    assert text.count(" shown") == 1
    assert "aspect-ratio:6/4" in text
    facts = segmenting.facts_of(prediction, CLASSES)
    assert "0.750" in facts
    assert "4, of which 2 distinct" in facts
    assert "24 px" in facts


def test_a_video_is_segmented_and_its_areas_are_means(models: Models, tmp_path: Path, shapes: Path):
    frames = [np.asarray(Image.open(shapes / "images" / f"{k:02d}.png")) for k in range(4)]
    path = tmp_path / "film.mp4"
    write_video(path, frames, fps=4)
    told: list[object] = []
    out, shares, note = segmenting.segment_video(
        models["mixture"], path, Settings(), None, lambda done, **_: told.append(done)
    )
    assert out.stat().st_size > 0
    assert out.name == "film-overlay.mp4"
    assert sum(share for _, share in shares) == pytest.approx(1)
    assert note.startswith("4 frames")
    assert told[-1] == (4, 4)
    with pytest.raises(SegmintError, match=r"film\.mp4: 24 x 32 pixels a frame"):
        segmenting.segment_video(models["mixture"], path, Settings(megapixels=0.0005), None, lambda *_, **__: None)
    path.write_bytes(b"nothing")
    with pytest.raises(SegmintError, match=r"^film\.mp4: cannot be opened as a video"):
        segmenting.segment_video(models["mixture"], path, Settings(), None, lambda *_, **__: None)


def test_pairs_are_arranged_by_what_became_of_them_and_by_score(pairs: Path):
    desk = sorting.Desk(pairs)
    held = desk.open()
    assert sorting.arranged(held, "all", "as generated") == ["00000", "00001", "00002", "00003"]
    assert sorting.orders(held)[1:3] == ["miou, lowest first", "miou, highest first"]
    assert sorting.arranged(held, "all", "miou, lowest first") == ["00001", "00002", "00000", "00003"]
    assert sorting.arranged(held, "all", "ignored, highest first") == ["00002", "00000", "00003", "00001"]
    assert sorting.arranged(held, "dropped", "as generated") == []
    facts = sorting.facts_of(held, "00001", ["00000", "00001"])
    assert "0.400" in facts
    assert "2 of 2" in facts
    assert "unknown" in facts


def test_a_choice_by_hand_is_written_moves_the_files_and_can_be_taken_back(pairs: Path):
    files = {path.relative_to(pairs): path.read_bytes() for path in pairs.rglob("*.png")}
    desk = sorting.Desk(pairs)
    desk.decide("00001", False)
    entry = desk.open().entries[1]
    assert (entry["kept"], entry["why"], entry["before"]) == (False, "hand: dropped", {"kept": True, "why": "rank: 1"})
    assert not (pairs / "images" / "00001.png").exists()
    assert (pairs / "dropped" / "masks" / "00001.png").is_file()
    assert [item.name for item in open_folder(pairs).items] == ["00000", "00002", "00003"]
    assert sorting.arranged(desk.open(), "dropped", "as generated") == ["00001"]
    assert "3 kept, 1 dropped" in sorting.facts_of(desk.open(), "00001", ["00001"])
    desk.decide("00001", True)
    assert desk.open().entries[1]["before"] == {"kept": True, "why": "rank: 1"}
    assert {path.relative_to(pairs): path.read_bytes() for path in pairs.rglob("*.png")} == files
    with pytest.raises(SegmintError, match="names no pair"):
        desk.decide("../x", True)
    desk.open().settle([Decision(True, "rank: 1")] * 4)
    assert "before" not in desk.open().entries[1]


def test_pixels_that_an_assay_ignored_stay_ignored_through_choices_by_hand(pairs: Path):
    desk = sorting.Desk(pairs)
    held = desk.open()
    drawn = held.mask("00000")
    assert held.ignoring("00000") is None
    (pairs / "drawn").mkdir()
    (pairs / "masks" / "00000.png").rename(pairs / "drawn" / "00000.png")
    ignoring = drawn.copy()
    ignoring[:5] = IGNORE
    write_mask(pairs / "masks" / "00000.png", ignoring, held.classes)
    for kept in (False, True, True):
        desk.decide("00000", kept)
        now = desk.open()
        place = now.ignoring("00000")
        assert place is not None
        assert (read_mask(place, now.classes) == ignoring).all()
        assert (now.mask("00000") == drawn).all()
    assert "ignored pixels white" in sorting.pictures(now, "00000")


def test_after_a_choice_the_next_pair_of_the_list_is_shown():
    names = ["a", "b", "c"]
    assert sorting._moved("b", names, 1, None) == "c"
    assert sorting._moved("c", names, 1, None) == "c"
    assert sorting._moved("a", names, -1, None) == "a"
    assert sorting._moved("b", ["a", "c"], 0, names) == "c"
    assert sorting._moved("c", ["a", "b"], 0, names) == "b"
    assert sorting._moved(None, names, 0, None) == "a"


def test_a_folder_without_a_manifest_is_no_folder_of_pairs(tmp_path: Path):
    with pytest.raises(SegmintError, match=r"manifest\.jsonl"):
        sorting.Desk(tmp_path)


def test_reports_are_found_below_a_folder_and_read_by_name_alone(tmp_path: Path):
    with pytest.raises(SegmintError, match="no HTML page"):
        reading.Shelf(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.html").write_text("<html><head></head><p title='x'>one</p>", encoding="utf-8")
    (tmp_path / "z.html").write_text("two", encoding="utf-8")
    (tmp_path / "bad.html").write_bytes(b"\xff\xfe\xff")
    shelf = reading.Shelf(tmp_path)
    assert list(shelf.pages) == ["bad.html", "z.html", "a/report.html"]
    frame = shelf.read("a/report.html")
    assert "&lt;base href=&quot;about:srcdoc&quot;&gt;&lt;/head&gt;" in frame
    assert 'sandbox="allow-scripts"' in frame
    with pytest.raises(SegmintError, match="no page called"):
        shelf.read("../z.html")
    with pytest.raises(SegmintError, match="cannot be read"):
        shelf.read("bad.html")
    assert list(reading.Shelf(tmp_path / "z.html").pages) == ["z.html"]


def test_heartbeats_end_with_the_server_and_nothing_else_does():
    async def app(scope: object, receive: object, send: object) -> None:
        heard.append(await receive())  # type: ignore[operator]

    async def never() -> dict[str, object]:
        await asyncio.sleep(60)
        return {}

    async def body() -> dict[str, object]:
        return {"type": "http.request"}

    async def play() -> None:
        ending = asyncio.Event()
        page = Ending(app, ending)
        beat = {"type": "http", "path": "/page/gradio_api/heartbeat/x"}
        waiting = asyncio.ensure_future(page(beat, never, never))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        assert not heard
        ending.set()
        await asyncio.wait_for(waiting, 1)
        await page({"type": "http", "path": "/v1/segment"}, body, never)  # type: ignore[arg-type]

    heard: list[dict[str, object]] = []
    asyncio.run(play())
    assert [message["type"] for message in heard] == ["http.disconnect", "http.request"]
