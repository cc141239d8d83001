from __future__ import annotations

import base64
import io
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch

from segmint.data.folder import open_folder
from segmint.serve.models import Models
from segmint.serve.settings import Settings
from segmint.types import SegmintError

IDS = np.array([0, 3, 7], np.uint8)


def form(png: bytes, name: str = "image") -> dict[str, tuple[str, bytes, str]]:
    return {name: ("../../photo.png", png, "image/png")}


def test_segment_as_json(client: httpx.Client, models: Models, png: bytes, pixels, decode):
    wanted = ["mask", "overlay", "uncertainty", "alternatives"]
    query = {"model": "all", "draws": 5, "seed": 3, "include": wanted}
    answer = client.post("/v1/segment", params=query, files=form(png))
    assert answer.status_code == 200, answer.text
    told, found = answer.json(), models.segment("all", pixels, draws=5, seed=3)
    assert (told["model"], told["height"], told["width"], told["draws"], told["seed"]) == ("all", 40, 48, 5, 3)
    assert np.array_equal(decode(base64.b64decode(told["mask"])), IDS[found.labels])
    assert [one["weight"] for one in told["alternatives"]] == [one.weight for one in found.alternatives]
    assert decode(base64.b64decode(told["alternatives"][0]["mask"])).shape == (40, 48)
    doubt = decode(base64.b64decode(told["uncertainty"]["map"])) / 255 * np.log(3)
    assert np.abs(doubt - found.uncertainty.numpy()).max() < 0.003
    assert told["uncertainty"]["most"] == pytest.approx(np.log(3))
    assert decode(base64.b64decode(told["overlay"])).shape == (40, 48, 3)
    assert told["expected_dice"] == pytest.approx(found.expected_dice)
    likely = found.probabilities.amax(0)
    assert told["confidence"] == pytest.approx(float(likely.mean()), abs=1e-5)
    for index, known in enumerate(told["classes"]):
        here = found.labels == index
        assert (known["id"], known["pixels"]) == (IDS[index], int(here.sum()))
        assert known["share"] == pytest.approx(float(here.float().mean()))
        assert known["confidence"] == (pytest.approx(float(likely[here].mean()), abs=1e-5) if here.any() else None)


def test_json_holds_the_mask_alone_unless_asked(client: httpx.Client, png: bytes):
    told = client.post("/v1/segment?model=plain", content=png, headers={"Content-Type": "image/png"}).json()
    assert set(told) == {
        "model", "height", "width", "seed", "draws", "confidence", "expected_dice", "uncertainty", "classes", "mask"
    }  # fmt: skip
    assert set(told["uncertainty"]) == {"mean", "most"}


def test_segment_as_files(client: httpx.Client, models: Models, png: bytes, pixels, decode):
    found = models.segment("all", pixels, draws=8, seed=1)  # the most that this server draws

    def ask(**more: object) -> httpx.Response:
        query = {"model": "all", "seed": 1} | more
        return client.post("/v1/segment", params=query, content=png, headers={"Content-Type": "image/png"})

    mask = ask(answer="mask")
    assert mask.headers["content-type"] == "image/png"
    assert np.array_equal(decode(mask.content), IDS[found.labels])
    overlay, plain = ask(answer="overlay", opacity=1), ask(answer="overlay", opacity=0)
    assert np.array_equal(decode(overlay.content), np.array(found.colors, np.uint8)[found.labels])
    assert np.array_equal(decode(plain.content), pixels)
    assert decode(ask(answer="uncertainty").content).shape == (40, 48)
    archive = ask(answer="probabilities")
    assert archive.headers["content-disposition"] == 'attachment; filename="probabilities.npz"'
    with np.load(io.BytesIO(archive.content)) as arrays:
        assert arrays["names"].tolist() == ["ground", "square", "disc"]
        kept = torch.from_numpy(arrays["probabilities"]).permute(2, 0, 1)
        torch.testing.assert_close(kept.float(), found.probabilities, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("image/png", "image/png"),
        ("*/*", "application/json"),
        ("image/*, application/json;q=0.5", "image/png"),
        ("text/html, application/x-npz;q=0.2", "application/x-npz"),
        ("image/png;q=0, */*;q=nonsense", "application/json"),
    ],
)
def test_accept_chooses_the_form(client: httpx.Client, png: bytes, accept: str, media: str):
    answer = client.post("/v1/segment?model=plain", files=form(png), headers={"Accept": accept})
    assert answer.headers["content-type"] == media
    assert client.post("/v1/segment?model=plain&answer=json", files=form(png), headers={"Accept": accept}).json()


def test_all_kinds_of_images(client: httpx.Client, models: Models, pixels, encode, decode):
    expected = IDS[models.segment("plain", pixels).labels]
    for kind in ("PNG", "TIFF", "WebP", "JPEG"):
        sent = encode(pixels, kind)
        answer = client.post("/v1/segment?model=plain&answer=mask", files=form(sent))
        assert answer.status_code == 200, answer.text
        assert decode(answer.content).shape == (40, 48)
        if kind in ("PNG", "TIFF"):
            assert np.array_equal(decode(answer.content), expected)


def test_generate(client: httpx.Client, models: Models, decode, tmp_path):
    pairs = models.generate("all", 2, seed=4)
    told = client.post("/v1/generate?model=all&count=2&seed=4").json()
    assert [pair["seed"] for pair in told["pairs"]] == [4_000_000, 4_000_001]
    assert (told["height"], told["width"], len(told["classes"])) == (32, 24, 3)
    for pair, made in zip(told["pairs"], pairs, strict=True):
        assert np.array_equal(decode(base64.b64decode(pair["image"])), made.image)
        assert np.array_equal(decode(base64.b64decode(pair["mask"])), IDS[made.mask])
    archive = client.post("/v1/generate?count=2&seed=4", headers={"Accept": "application/zip"})
    assert archive.headers["content-disposition"] == 'attachment; filename="all.zip"'
    zipfile.ZipFile(io.BytesIO(archive.content)).extractall(tmp_path)
    data = open_folder(tmp_path)
    assert (len(data), data.classes.names) == (2, ("ground", "square", "disc"))


def test_paint(client: httpx.Client, models: Models, encode, decode, pixels):
    mask = np.zeros((32, 24), np.uint8)
    mask[8:20] = 2
    png = encode(IDS[mask])
    answer = client.post(
        "/v1/paint?model=painter&answer=image&seed=2", content=png, headers={"Content-Type": "image/png"}
    )
    assert answer.status_code == 200, answer.text
    assert np.array_equal(decode(answer.content), models.paint("painter", mask, seed=2))
    colored = encode(np.array([(0, 0, 0), (230, 159, 0), (0, 114, 178)], np.uint8)[mask])
    told = client.post("/v1/paint?model=painter&seed=2", files=form(colored, "mask")).json()
    assert np.array_equal(decode(base64.b64decode(told["image"])), decode(answer.content))
    assert np.array_equal(decode(base64.b64decode(told["mask"])), IDS[mask])
    both = {**form(png, "mask"), **form(encode(pixels))}
    over = client.post("/v1/paint?model=all&answer=image", files=both)
    assert np.array_equal(decode(over.content), models.paint("all", mask, image=pixels))


def test_models_tell_what_they_can_and_not_where_they_lie(client: httpx.Client, models: Models):
    answer = client.get("/v1/models")
    told = {model["name"]: model for model in answer.json()["models"]}
    assert tuple(told) == models.names
    assert told["all"]["jobs"] == ["segment", "draws", "generate", "paint", "repaint"]
    assert (told["painter"]["usual_draws"], told["all"]["usual_draws"]) == (None, 16)
    assert told["all"]["classes"][1] == {"id": 3, "name": "square", "color": [230, 159, 0]}
    assert answer.json()["limits"]["megabytes"] == 0.2
    assert str(models["all"].run.folder) not in answer.text


def test_health_and_metrics_need_no_key(address: str, png: bytes):
    with httpx.Client(base_url=address) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ok"}
        key = {"Authorization": "Bearer secret"}
        assert client.post("/v1/segment?model=plain", files=form(png), headers=key).status_code == 200
        client.post("/nowhere", content=b"x")
        text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['segmint_requests_total{path="/v1/segment",status="200"}']) >= 1
    assert float(lines['segmint_requests_total{path="other",status="404"}']) >= 1
    assert float(lines['segmint_batch_size_sum{job="segment",model="plain"}']) >= 1
    assert float(lines["segmint_received_bytes_total"]) >= len(png)
    assert float(lines['segmint_queue_length{model="plain"}']) == 0
    assert float(lines["process_resident_memory_bytes"]) > 1e6


def test_requests_at_once_share_batches_and_get_their_own_answers(several, models: Models, encode, decode):
    numbers = np.random.default_rng(1)
    images = [numbers.integers(0, 255, (40, 48, 3), dtype=np.uint8) for _ in range(8)]
    expected = [IDS[models.segment("all", image, seed=place).labels] for place, image in enumerate(images)]
    with several(models, Settings(batch=4, wait=0.3)) as (address, app), httpx.Client(base_url=address) as client:

        def ask(place: int) -> bytes:
            query = {"model": "all", "seed": place, "answer": "mask"}
            answer = client.post("/v1/segment", params=query, files=form(encode(images[place])), timeout=30)
            assert answer.status_code == 200, answer.text
            return answer.content

        with ThreadPoolExecutor(8) as pool:
            masks = list(pool.map(ask, range(8)))
        sizes = app.state.service.metrics.batches.labels("all", "segment")
        assert sizes._sum.get() == 8
        assert sum(bucket.get() for bucket in sizes._buckets) <= 4
    for mask, wanted in zip(masks, expected, strict=True):
        assert np.array_equal(decode(mask), wanted)


def test_one_model_needs_no_name_and_the_page_of_errors_is_one_sentence(several, models: Models, png: bytes):
    alone = Models({"plain": models["plain"].run})
    with several(alone) as (address, _), httpx.Client(base_url=address) as client:
        assert client.post("/v1/segment", files=form(png)).json()["model"] == "plain"
        answer = client.post("/v1/generate")
        assert (answer.status_code, answer.json()) == (
            422,
            {"error": "model: none here is for /v1/generate; /v1/models tells what they can do"},
        )
        assert "required" not in str(
            client.get("/openapi.json").json()["paths"]["/v1/segment"]["post"]["parameters"][0]["schema"]
        )


def test_it_ends_after_the_answers(several, models: Models, png: bytes):
    with ThreadPoolExecutor(1) as pool:
        with several(models, Settings(key=None)) as (address, app):
            asked = pool.submit(httpx.post, f"{address}/v1/segment?model=slow", files=form(png), timeout=30)
            while not app.state.service.batcher.lengths():
                time.sleep(0.01)
        assert asked.result(1).status_code == 200
    assert app.state.service.state() == "closing"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"key": ""}, "API key: must be"),
        ({"key": "a\nb"}, "API key: must be"),
        ({"key": "schlüssel"}, "API key: must be"),
        ({"megabytes": 0}, "--max-megabytes: must be more than 0"),
        ({"upload_seconds": -1}, "--max-upload-seconds"),
        ({"batch": 0}, "--batch"),
        ({"wait": -1}, "--wait"),
        ({"waiting": 8}, "--max-waiting: must be at least --max-pairs, 64, not 8"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, told: str):
    with pytest.raises(SegmintError, match=told):
        replace(Settings(wait=0), **change)
