"""The page as somebody uses it: a real server, a real browser, and clicks.

SEGMINT_PAGE_PICTURES=docs/pictures writes screenshots, page-*.png, SEGMINT_PAGE_WIDTH pixels wide; SEGMINT_PAGE_DEMO
names what is shown on them, see conftest.py.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmint.data.video import write_video
from segmint.serve.models import Models
from segmint.serve.page import sorting
from segmint.types import SegmintError

REMEDY = 'pip install "segmint[page]" playwright'
pytest.importorskip("gradio", reason=f"NOT TESTED, the web page: there is no Gradio; {REMEDY}")
playwright = pytest.importorskip("playwright.sync_api", reason=f"NOT TESTED, the web page: no playwright; {REMEDY}")
uvicorn = pytest.importorskip("uvicorn", reason=f"NOT TESTED, the web page: no uvicorn; {REMEDY}")
httpx = pytest.importorskip("httpx", reason=f"NOT TESTED, the web page: no httpx; {REMEDY}")

WIDTH = int(os.environ.get("SEGMINT_PAGE_WIDTH", "1280"))
PATIENCE = 60_000
"""Milliseconds; the machine that tests may be busy."""


def browser_path() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return os.environ.get("SEGMINT_BROWSER") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        path = browser_path() or driver.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("NOT TESTED, the web page: there is no Chromium; install it, or name it in SEGMINT_BROWSER")
        found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield found
        found.close()


@contextmanager
def served(house: Any, **changes: Any) -> Iterator[str]:
    """The address of a running page."""
    from segmint.serve.app import create_app
    from segmint.serve.page import mount
    from segmint.serve.run import _Server

    settings = replace(house.settings, **changes)
    app = create_app(house.models, settings)
    mount(app, house.models, settings=settings, data=house.data, pairs=house.pairs, reports=house.reports)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=60)
    server = _Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started and time.monotonic() < end:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()  # it does not wait for pages that are open


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Any]:
    """A tab that all tests use, as it need not fetch the page's scripts anew."""
    with browser.new_context(viewport={"width": WIDTH, "height": 860}, accept_downloads=True) as context:
        tab = context.new_page()
        tab.set_default_timeout(PATIENCE)
        yield tab


@pytest.fixture(scope="module")
def address(house: Any, tab: Any) -> Iterator[str]:
    """Of the page; its server ends while the tab is still open."""
    with served(house) as address:
        yield address


@pytest.fixture
def page(address: str, tab: Any) -> Iterator[Any]:
    """The page, just opened; in the end no request must have left this machine, and no script have failed."""
    asked: list[str] = []
    failed: list[str] = []
    watched = {
        "request": lambda request: asked.append(request.url),
        "pageerror": lambda error: failed.append(str(error)),
    }
    for event, told in watched.items():
        tab.on(event, told)
    tab.goto(f"{address}/page")
    tab.get_by_role("tab").first.wait_for()
    yield tab
    for event, told in watched.items():
        tab.remove_listener(event, told)
    assert asked
    local = (address, "data:", "blob:", "about:", address.replace("http", "ws"))
    assert [url for url in asked if not url.startswith(local)] == []
    assert failed == []


def picture(page: Any, name: str) -> None:
    """Keep a screenshot, if they are asked for."""
    folder = os.environ.get("SEGMINT_PAGE_PICTURES")
    if folder:
        page.wait_for_function("!document.querySelector('.progress-text')")
        page.mouse.move(1, 1)
        page.wait_for_timeout(600)
        page.screenshot(path=str(Path(folder) / f"page-{name}.png"), full_page=True)


def an_image(house: Any) -> Path:
    images = sorted((house.data / "images").rglob("*.png"))
    return images[len(images) // 2]


def shown_layers(page: Any) -> list[str]:
    return list(page.eval_on_selector_all("#segment-view .layer.shown", "all => all.map(one => one.dataset.name)"))


def test_drop_an_image_see_its_mask_fade_it_and_take_it_home(page: Any, house: Any, tmp_path: Path):
    page.set_input_files("#segment-file input[type=file]", str(an_image(house)))
    page.wait_for_selector("#segment-view .layer.shown")
    assert shown_layers(page) == ["Mask"]
    legend = page.locator("#segment-facts table.legend")
    assert sorted(legend.locator("td:first-child").all_inner_texts()) == sorted(house.models[NAME(house)].classes.names)
    page.locator("#segment-opacity input[type=range]").fill("80")
    page.wait_for_function("getComputedStyle(document.querySelector('.layer.shown')).opacity == '0.8'")
    picture(page, "segment")
    page.locator("#segment-show").get_by_label("Uncertainty").check()
    page.wait_for_function("document.querySelector('.layer.shown').dataset.name == 'Uncertainty'")
    picture(page, "uncertainty")
    page.locator("#segment-show").get_by_label("Image alone").check()
    page.wait_for_function("!document.querySelector('.layer.shown')")
    with page.expect_download() as waiting:
        page.locator("#segment-download").click()
    waiting.value.save_as(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask, Image.open(an_image(house)) as image:
        assert mask.size == image.size
        assert waiting.value.suggested_filename == f"{an_image(house).stem}-mask.png"


def NAME(house: Any) -> str:  # noqa: N802
    return str(house.models.able("segment")[0])


def test_alternatives_are_shown_one_by_one(page: Any, house: Any):
    drawing = [name for name in house.models.able("draws") if house.models[name].run.method.draws_differ]
    page.locator("#tab-segment, [role=tabpanel]").first.get_by_label("Model").click()
    page.get_by_role("option", name=drawing[0], exact=True).click()
    page.set_input_files("#segment-file input[type=file]", str(an_image(house)))
    page.wait_for_selector("#segment-view .layer.shown")
    page.locator("#segment-show").get_by_label("Alternative 2").check()
    page.wait_for_function("document.querySelector('.layer.shown').dataset.name.startsWith('Alternative 2: ')")
    picture(page, "alternatives")


def test_files_that_are_no_images_get_an_answer_in_words(page: Any, tmp_path: Path):
    Image.new("RGB", (1200, 1000)).save(tmp_path / "large.png")
    Image.new("RGB", (3, 300)).save(tmp_path / "thin.png")
    (tmp_path / "none.png").write_bytes(b"this is no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "film.mp4").write_bytes(b"this is no film")
    told = {
        "large.png": "1200 x 1000 pixels, but 1 million at most are read",
        "thin.png": "3 x 300 pixels; give one with 8 pixels or more",
        "none.png": "is no PNG, JPEG, WebP or TIFF file",
        "film.mp4": "cannot be opened as a video",
    }
    for name, words in told.items():
        page.set_input_files("#segment-file input[type=file]", str(tmp_path / name))
        page.locator("#segment-notice .bad").get_by_text(words).wait_for()
        notice = page.locator("#segment-notice").inner_text()
        assert notice.startswith(name)
        assert str(tmp_path) not in notice
        assert "/gradio" not in notice
        assert "Traceback" not in page.content()
        assert not shown_layers(page)
        page.locator("#segment-file").get_by_label("Remove this file").or_(
            page.locator("#segment-file button[aria-label='Clear']")
        ).first.click()
        page.wait_for_selector("#segment-file input[type=file]", state="attached")
        page.wait_for_selector("#segment-notice .bad", state="detached")


def test_a_video_is_played_with_its_masks(page: Any, house: Any, tmp_path: Path):
    with Image.open(an_image(house)) as image:
        still = np.asarray(image.convert("RGB"))
    write_video(tmp_path / "film.mp4", [np.roll(still, 2 * k, 1) for k in range(6)], fps=6)
    page.set_input_files("#segment-file input[type=file]", str(tmp_path / "film.mp4"))
    page.wait_for_selector("#segment-film video")
    page.wait_for_function("document.querySelector('#segment-film video').readyState >= 2")
    assert page.locator("#segment-facts").get_by_text("6 frames").count() == 1
    picture(page, "video")


def stroke(page: Any, *points: tuple[float, float]) -> None:
    """Draw on the board; points are in shares of its width and height."""
    page.locator("#paint-board canvas").scroll_into_view_if_needed()
    box = page.locator("#paint-board canvas").bounding_box()
    places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


def painted(page: Any, count: int = 1, after: str = "") -> str:
    """The first of the pictures painted, once there are so many and it is another one."""
    page.wait_for_function(
        """([count, after]) => { const all = document.querySelectorAll('#paint-pictures img');
        return all.length === count && all[0].src !== after; }""",
        arg=[count, after],
    )
    return str(page.locator("#paint-pictures img").first.get_attribute("src"))


def opened(url: str) -> np.ndarray:
    """The pixels of a data URL."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def drawn(page: Any) -> np.ndarray:
    """The colours on the board, [h, w, 3]."""
    flat = page.evaluate(
        """() => { const c = document.querySelector('#paint-board canvas');
        return [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }"""
    )
    return np.array(flat[2:], np.uint8).reshape(flat[0], flat[1], 4)[..., :3]


def test_draw_a_mask_and_see_it_painted(page: Any, house: Any):
    model = house.models[house.models.able("paint")[0]]
    page.get_by_role("tab", name="Paint").click()
    brushes = page.locator("#paint-board .brushes button")
    assert brushes.all_inner_texts() == list(model.classes.names)
    brushes.nth(2).click()
    stroke(page, (0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7), (0.3, 0.3))
    first = painted(page)
    colors = {tuple(color) for color in drawn(page).reshape(-1, 3).tolist()}
    assert colors == {model.classes.colors[0], model.classes.colors[2]}
    page.locator("#paint-board .fill").click()
    brushes.nth(1).click()
    stroke(page, (0.5, 0.5))
    second = painted(page, after=first)
    assert tuple(drawn(page)[model.size[0] // 2, model.size[1] // 2]) == model.classes.colors[1]
    assert tuple(drawn(page)[0, 0]) == model.classes.colors[0]
    picture(page, "paint")
    page.locator("#paint-board .undo").click()
    assert painted(page, after=second) == first
    page.locator("#paint-count input[type=number]").fill("3")
    page.locator("#paint-count input[type=number]").press("Enter")
    page.locator("#paint-button").click()
    assert painted(page, count=3) == first
    assert len(set(page.eval_on_selector_all("#paint-pictures img", "all => all.map(one => one.src)"))) == 3
    page.locator("#paint-board .clear").click()
    painted(page, count=3, after=first)
    assert (drawn(page) == model.classes.colors[0]).all()


def test_paint_from_a_mask_of_the_data_and_from_an_image(page: Any, house: Any):
    page.get_by_role("tab", name="Paint").click()
    page.get_by_text("Start from another mask").click()
    page.locator("#paint-item input").click()
    options = page.get_by_role("option")
    options.nth(options.count() // 2).click()
    first = painted(page)
    assert len({tuple(color) for color in drawn(page).reshape(-1, 3).tolist()}) > 1
    page.locator("#paint-count input[type=number]").fill("4")
    page.locator("#paint-count input[type=number]").press("Enter")
    page.locator("#paint-button").click()
    painted(page, count=4)
    picture(page, "variants")
    before = drawn(page)
    page.set_input_files("#paint-file input[type=file]", str(an_image(house)))
    painted(page, count=4, after=first)
    assert (drawn(page) != before).any()


def test_paint_over_a_photograph(page: Any, house: Any):
    able = house.models.able("repaint")
    if not able:
        pytest.skip("the fine house has no such model")
    page.get_by_role("tab", name="Paint").click()
    page.get_by_label("Painter").click()
    page.get_by_role("option", name=able[0], exact=True).click()
    over = page.get_by_label("Paint over the segmented photograph")
    first = painted(page)
    over.check()
    page.locator("#paint-notice .bad").get_by_text("no photograph to paint over").wait_for()
    page.get_by_text("Start from another mask").click()
    page.set_input_files("#paint-file input[type=file]", str(an_image(house)))
    second = painted(page, after=first)
    with Image.open(an_image(house)) as image:
        assert (opened(second) == np.asarray(image)).all()  # this one paints nothing over it


def manifest(house: Any) -> dict[str, Any]:
    lines = (house.pairs / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["name"]: entry for entry in map(json.loads, lines)}


@pytest.fixture
def sorted_pairs(house: Any, tmp_path: Path) -> Iterator[Path]:
    """The folder of pairs, which is put back as it was."""
    shutil.copytree(house.pairs, tmp_path / "copy")
    yield house.pairs
    shutil.rmtree(house.pairs)
    shutil.copytree(tmp_path / "copy", house.pairs)


def test_leaf_through_pairs_and_keep_or_drop_them(page: Any, house: Any, sorted_pairs: Path):
    page.get_by_role("tab", name="Pairs").click()
    place = page.locator("#pairs-facts .place")
    first, second = list(manifest(house))[:2]
    place.get_by_text(first).wait_for()
    page.locator("#pairs-next").click()
    place.get_by_text(second).wait_for()
    page.locator("#pairs-drop").click()
    place.locator(".dropped").wait_for()
    page.locator("#pairs-facts .why").get_by_text("hand: dropped").wait_for()
    assert manifest(house)[second]["kept"] is False
    assert not (sorted_pairs / "images" / f"{second}.png").exists()
    page.keyboard.press("k")
    place.locator(".kept").wait_for()
    assert manifest(house)[second]["kept"] is True
    assert (sorted_pairs / "images" / f"{second}.png").is_file()
    page.keyboard.press("ArrowLeft")
    place.get_by_text(first).wait_for()
    page.locator("#pairs-show").get_by_label("kept").check()
    page.locator("#pairs-order input").click()
    page.get_by_role("option", name="miou, highest first").click()
    best = sorting.arranged(sorting.Desk(sorted_pairs).open(), "kept", "miou, highest first")
    page.locator("#pairs-facts .place b").get_by_text(best[0], exact=True).wait_for()
    assert f"1 of {len(best)}" in page.locator("#pairs-facts .place").inner_text()
    picture(page, "pairs")
    page.locator("#pairs-show").get_by_label("dropped").check()
    page.wait_for_function(
        "document.querySelector('#pairs-pair .empty') || document.querySelector('#pairs-facts .badge.dropped')"
    )


def test_a_pair_that_is_gone_is_told_in_words(page: Any, sorted_pairs: Path):
    page.get_by_role("tab", name="Pairs").click()
    page.locator("#pairs-facts .place").wait_for()
    (sorted_pairs / "manifest.jsonl").unlink()
    page.locator("#pairs-next").click()
    page.locator("#pairs-notice .bad").get_by_text("manifest.jsonl").wait_for()
    assert "Traceback" not in page.content()


def test_read_a_report(page: Any, house: Any):
    page.get_by_role("tab", name="Reports").click()
    frame = page.frame_locator("#reports-frame iframe")
    frame.locator("h1").first.wait_for()
    assert frame.locator("#tabs").count() == 0
    picture(page, "reports")
    frame.locator("a[href^='#']").first.click()
    assert frame.locator("h1").first.is_visible()
    assert [part.url.partition("#")[0] for part in page.frames[1:]] == ["about:srcdoc"]


def test_only_what_there_is_has_a_tab(house: Any, shapes: Path, tmp_path: Path, run: Path):
    from segmint.serve.page import _build, require_gradio

    def tabs(**given: Any) -> list[str]:
        settings = {"data": None, "pairs": None, "reports": None, **given}
        blocks = _build(require_gradio(), Models([run]), house.settings, **settings)
        return [block.label for block in blocks.blocks.values() if type(block).__name__ == "Tab"]

    assert tabs() == ["Segment", "Paint"]
    assert tabs(pairs=house.pairs) == ["Segment", "Paint", "Pairs"]
    assert tabs(reports=house.reports) == ["Segment", "Paint", "Reports"]
    with pytest.raises(SegmintError, match=r"manifest\.jsonl"):
        tabs(pairs=tmp_path)
    with pytest.raises(SegmintError, match="no HTML page"):
        tabs(reports=shapes)


def test_with_a_key_nothing_is_to_be_had_without_and_no_other_file_with_it(house: Any):
    with served(house, key="secret") as address, httpx.Client(base_url=address, follow_redirects=True) as client:
        assert client.get("/page/config").status_code == 401
        assert client.post("/page/gradio_api/upload", files={"files": b"x"}).status_code == 401
        wrong = {"username": "me", "password": "Secret"}
        assert client.post("/page/login", data=wrong).status_code == 400
        assert client.get("/page/config").status_code == 401
        assert client.post("/page/login", data={"username": "me", "password": "secret"}).status_code == 200
        assert client.get("/page/config").status_code == 200
        large = client.post("/page/gradio_api/upload", files={"files": b"x" * 3_000_000})
        assert large.status_code == 413
        with suppress(httpx.HTTPError):
            answer = client.get("/page/gradio_api/file=/etc/passwd")
            assert answer.status_code in (403, 404)


def test_uploads_of_the_page_have_the_limits_of_all_bodies(house: Any):
    with served(house, upload_seconds=2) as address, httpx.Client(base_url=address, timeout=30) as client:
        kept, half = Path(os.environ["GRADIO_TEMP_DIR"]), house.settings.bytes * 2 // 3
        assert client.post("/page/gradio_api/upload", files={"files": b"x" * half}).status_code == 200
        before = set(kept.iterdir())
        several = client.post("/page/gradio_api/upload", files=[("files", b"x" * half), ("files", b"y" * half)])
        assert several.status_code == 413
        assert "maximum allowed size" in several.json()["error"]

        def form(parts: int, seconds: float) -> Iterator[bytes]:
            yield b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
            for _ in range(parts):
                time.sleep(seconds)
                yield b"x" * (half // 4)

        kind = {"Content-Type": "multipart/form-data; boundary=edge"}
        endless = client.post("/page/gradio_api/upload", content=form(8, 0), headers=kind)
        assert (endless.status_code, "maximum allowed size" in endless.text) == (413, True)
        slow = client.post("/page/gradio_api/upload", content=form(4, 1), headers=kind)
        assert "over a faster connection" in slow.text
        assert set(kept.iterdir()) == before
