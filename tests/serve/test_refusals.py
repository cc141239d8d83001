"""Whatever is sent, the answer is a 4xx that says what is wrong, and the server goes on."""

from __future__ import annotations

import io
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tifffile
from PIL import Image

from segmint.serve import limits
from segmint.serve.limits import RefusedError, read_uploaded_image
from segmint.serve.models import Models
from segmint.serve.settings import Settings


@pytest.fixture(autouse=True)
def lives(address: str, png: bytes) -> Iterator[None]:
    """After each of these tests the server still does what it is for, and nothing hangs."""
    yield
    key, file = {"X-API-Key": "secret"}, {"image": ("a.png", png)}
    assert httpx.post(f"{address}/v1/segment?model=plain", headers=key, files=file).status_code == 200
    assert "segmint_requests_in_progress 1.0" in httpx.get(f"{address}/metrics").text


def refused(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert set(told) == {"error"}
    for word in words:
        assert word in told["error"]


def send(
    client: httpx.Client, data: bytes, path: str = "/v1/segment?model=plain", field: str = "image"
) -> httpx.Response:
    return client.post(path, files={field: ("photo.png", data)})


@pytest.mark.parametrize("header", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "ü"}])
@pytest.mark.parametrize("path", ["/v1/segment", "/v1/generate", "/v1/paint", "/v1/models"])
def test_without_the_key(address: str, png: bytes, header: dict[str, str], path: str):
    header = {name: value.encode() for name, value in header.items()}
    method = "GET" if path == "/v1/models" else "POST"
    files = None if method == "GET" else {"image": png}
    answer = httpx.request(method, address + path, headers=header, files=files)
    refused(answer, 401, "API key", "X-API-Key")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/segment", 422, ["say which, ?model=NAME", "all, plain"]),
        ("/v1/segment?model=nobody", 404, ["there is no 'nobody'; there are all, plain"]),
        ("/v1/segment?model=../../../etc/passwd", 404, ["there is no"]),
        ("/v1/segment?model=%2e%2e%2fplain", 404, ["there is no"]),
        ("/v1/segment?model=" + "x" * 2000, 404, ["there is no"]),
        ("/v1/segment?model=painter", 422, ["'painter': cannot segment; it can paint masks"]),
        ("/v1/segment?model=plain&draws=4", 422, ["4 draws would all be the same", "leave draws out"]),
        ("/v1/segment?model=all&draws=9", 422, ["draws: at most 8 here, not 9"]),
        ("/v1/segment?model=all&draws=0", 422, ["draws: ", "greater than or equal to 1", "'0'"]),
        ("/v1/segment?model=all&draws=many", 422, ["draws: ", "integer", "'many'"]),
        ("/v1/segment?model=all&draw=4", 422, ["draw: there is no such setting"]),
        ("/v1/segment?model=all&seed=-1", 422, ["seed: "]),
        ("/v1/segment?model=all&opacity=nan", 422, ["opacity: "]),
        ("/v1/segment?model=all&answer=poem", 422, ["answer: ", "'mask'"]),
        ("/v1/segment?model=all&include=poem", 422, ["include.0: "]),
        ("/v1/paint?model=plain", 422, ["'plain': cannot paint masks; it can segment"]),
        ("/v1/generate?model=painter", 422, ["cannot make pairs"]),
        ("/v1/generate?model=all&count=9", 422, ["count: at most 8 pairs"]),
        ("/v1/segment/../../etc/passwd", 404, ["there is nothing at"]),
        ("/v1/%2e%2e/%2e%2e/etc/passwd", 404, ["there is nothing at"]),
        ("/v1/plain", 404, ["there is nothing at '/v1/plain'; /openapi.json"]),
    ],
)
def test_what_is_asked_for_wrongly(client: httpx.Client, png: bytes, path: str, status: int, words: list[str]):
    refused(send(client, png, path), status, *words)


def test_methods_and_media_types_that_are_not_offered(client: httpx.Client, png: bytes):
    answer = client.delete("/v1/segment")
    refused(answer, 405, "DELETE is not for '/v1/segment'; use POST")
    assert answer.headers["allow"] == "POST"
    answer = client.post("/v1/segment?model=plain", files={"image": png}, headers={"Accept": "text/html"})
    refused(answer, 406, "'text/html': not offered; there are application/json, image/png")


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/json", "application/x-www-form-urlencoded", "image/gif"]
)
def test_bodies_of_other_types(client: httpx.Client, png: bytes, kind: str | None):
    headers = {} if kind is None else {"Content-Type": kind}
    refused(client.post("/v1/segment?model=plain", content=png, headers=headers), 415, "curl -F image=@photo.png")


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"", 422, "image: is empty"),
        (b"GIF89a" + bytes(50), 415, "image: is no PNG, JPEG, WebP or TIFF file"),
        (b"RIFF\0\0\0\0WAVEfmt ", 415, "is no PNG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), 422, "image: "),
        (b"\xff\xd8\xff\xe0" + bytes(40), 422, "image: "),
        (b"RIFF\x40\0\0\0WEBPVP8 " + bytes(40), 422, "image: "),
        (b"II*\0\xff\xff\xff\xff", 422, "image: "),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0", 422, "image: "),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "is no PNG"),
    ],
)
def test_files_that_are_no_images(client: httpx.Client, data: bytes, status: int, word: str):
    answer = send(client, data)
    refused(answer, status, word)
    assert "/tmp" not in answer.text


def test_images_cut_off(client: httpx.Client, pixels: np.ndarray, encode):
    for kind in ("PNG", "JPEG", "WebP", "TIFF"):
        data = encode(pixels, kind)
        answer = send(client, data[: len(data) // 2])
        refused(answer, 422, "image: ")
        assert "/tmp" not in answer.text


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (7, 100), (2500, 8)])
def test_images_of_impossible_shape(client: httpx.Client, encode, size: tuple[int, int], monkeypatch):
    monkeypatch.setattr("segmint.inference.predict.MOST_SHOWN", 30_000)
    data = encode(np.zeros((*size, 3), np.uint8))
    refused(send(client, data), 422, "give one with 8 pixels or more" if min(size) < 8 else "too long and thin")
    if min(size) < 8:
        mask = encode(np.zeros(size, np.uint8))
        refused(send(client, mask, "/v1/paint?model=painter", "mask"), 422, "mask: is")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int, depth: int = 8) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    data = zlib.compress(bytes(width * depth // 8 * 3 + 1) * min(height, 100), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff_of(**tags: int) -> bytes:
    """A TIFF of 16 x 16 grey pixels, with tags of its own; deflate, of which 100 MB come out."""
    packer = zlib.compressobj(9)
    data = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(100)), packer.flush()])
    names = {"width": 256, "length": 257, "bits": 258, "compression": 259, "kind": 262, "samples": 277, "rows": 278}
    names |= {"tile_width": 322, "tile_length": 323}
    found = {"width": 16, "length": 16, "bits": 8, "compression": 8, "kind": 1, "samples": 1, "rows": 16} | tags
    tiled = "tile_width" in tags
    if tiled:
        del found["rows"]
    entries = {names[name]: value for name, value in found.items()}
    entries |= {324: 8, 325: len(data)} if tiled else {273: 8, 279: len(data)}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    data += bytes(len(data) % 2)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)


def many_scans(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 200 + data[-2:]


BOMBS: dict[str, tuple[Callable[[], bytes], int]] = {
    "huge png": (lambda: png_bomb(60_000, 60_000), 413),
    "png over our limit": (lambda: png_bomb(2000, 2000), 413),
    "huge 16 bit png": (lambda: png_bomb(30_000, 30_000, 16), 413),
    "png with text": (lambda: with_text(png_bomb(16, 16)), 422),
    "tiff strip": (tiff_of, 422),
    "huge tiff": (lambda: tiff_of(width=100_000, length=100_000), 413),
    "tiff tile": (lambda: tiff_of(tile_width=65_536, tile_length=65_536), 413),
    "tiff samples": (lambda: tiff_of(samples=60_000), 415),
    "tiff bits": (lambda: tiff_of(bits=64), 415),
    "tiff jpeg": (lambda: tiff_of(compression=7), 415),
    "jpeg scans": (lambda: many_scans(np.zeros((32, 32, 3), np.uint8)), 422),
    "webp over our limit": (lambda: webp_of(2000, 2000), 413),
    "webp that says it is huge": (lambda: b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f" + bytes(8), 422),
}


def webp_of(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def with_text(png: bytes) -> bytes:
    text = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    return png[:33] + chunk(b"zTXt", text) + png[33:]


@pytest.mark.parametrize("name", BOMBS)
def test_decompression_bombs_are_caught_before_they_go_off(client: httpx.Client, name: str):
    make, status = BOMBS[name]
    data = make()
    peak()
    before, begun = peak(), time.perf_counter()
    answer = send(client, data)
    refused(answer, status, "image: ")
    assert time.perf_counter() - begun < 5
    assert peak() - before < 64
    assert len(data) < 200_000


def peak() -> float:
    """The most memory that this process, and so the server, has had since this was last asked, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def test_tiffs_that_are_harmless_are_read(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    for options in ({}, {"compression": "zlib"}, {"tile": (16, 16), "compression": "lzw"}, {"rowsperstrip": 2**31 - 1}):
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **options)
        assert np.array_equal(read_uploaded_image(tmp_path / "a.tif", "image", Settings(), 8), pixels)
    tifffile.imwrite(tmp_path / "b.tif", pixels, photometric="rgb", compression="jpeg")
    with pytest.raises(RefusedError, match="another compression than none, LZW, deflate, PackBits"):
        read_uploaded_image(tmp_path / "b.tif", "image", Settings(), 8)


def test_forms(client: httpx.Client, png: bytes, encode):
    path, file = "/v1/segment?model=plain", ("a.png", png)
    refused(client.post(path, files={"picture": file}), 422, "there is no field 'picture'; there is image")
    refused(client.post(path, files={"image": file}, data={"draws": "3"}), 422, "settings go into the address")
    refused(client.post(path, files=[("image", file), ("image", file)]), 422, "image: is there twice")
    refused(client.post(path, files=[("image", file)] * 5), 400, "Too many files")
    refused(client.post(path, files={"image": (None, b"text")}), 422, "image: is text, not a file")
    refused(client.post("/v1/paint?model=all", files={"image": file}), 422, "form: has no file 'mask'")
    mask = encode(np.zeros((32, 24), np.uint8))
    both = {"mask": ("m.png", mask), "image": ("i.png", png)}
    refused(client.post("/v1/paint?model=painter", files=both), 422, "cannot paint over photographs")
    head = {"Content-Type": "multipart/form-data"}
    refused(client.post(path, content=png, headers=head), 400, "boundary")
    head = {"Content-Type": "multipart/form-data; boundary=x"}
    refused(client.post(path, content=b"nonsense", headers=head), 400)
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + png
    refused(client.post(path, content=part, headers=head), 422, "was cut off before its end")
    tricky = {"image": ("../../../../tmp/segmint-was-here.png\0.exe", png)}
    assert client.post(path, files=tricky).status_code == 200
    assert not Path("/tmp/segmint-was-here.png").exists()


def test_masks_of_other_classes(client: httpx.Client, pixels: np.ndarray, encode):
    for mask in (pixels, pixels[..., 0]):
        answer = send(client, encode(mask), "/v1/paint?model=painter", "mask")
        refused(answer, 422, "mask: ", "not among the classes; correct the mask's")
    refused(send(client, encode(pixels, "JPEG"), "/v1/paint?model=painter", "mask"), 415, "mask: is no PNG or TIFF")


def test_bodies_too_large_whether_they_say_so_or_not(client: httpx.Client, png: bytes, monkeypatch):
    monkeypatch.setattr(limits, "LINGER", 0.2)
    refused(send(client, png + bytes(300_000)), 413, "body: more than 0.2 MB")
    peak()
    before = peak()
    head = {"Content-Type": "image/png"}
    answer = client.post("/v1/segment?model=plain", content=(bytes(50_000) for _ in range(10)), headers=head)
    refused(answer, 413, "body: more than 0.2 MB")
    assert answer.headers["connection"] == "close"
    assert peak() - before < 16


class Raw:
    """A connection on which anything can be sent."""

    def __init__(self, address: str) -> None:
        place = urlsplit(address)
        self.socket = socket.create_connection((place.hostname, place.port), timeout=20)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def head(self, *lines: str) -> None:
        first = ["POST /v1/segment?model=plain HTTP/1.1", "Host: x", "X-API-Key: secret", "Content-Type: image/png"]
        self.socket.sendall("".join(line + "\r\n" for line in (*first, *lines, "")).encode())

    def answer(self) -> tuple[int, str]:
        """Status and body of the next answer."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.socket.recv(65536)
        top, _, body = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", top.lower())[1])
        while len(body) < length:
            body += self.socket.recv(65536)
        return int(top.split()[1]), body.decode()


def test_a_body_of_a_gigabyte_is_refused_at_its_start(address: str):
    peak()
    before = peak()
    with Raw(address) as raw:
        raw.head("Content-Length: 1000000000")
        assert raw.answer()[0] == 413
    with Raw(address) as raw:
        raw.head("Content-Length: 1000000000", "Expect: 100-continue")
        assert raw.answer()[0] == 413
    with Raw(address) as raw:
        raw.head("Transfer-Encoding: chunked")
        piece, sent = b"100000\r\n" + bytes(1 << 20) + b"\r\n", 0
        try:
            while sent < 1000:
                raw.socket.sendall(piece)
                sent += 1
                if raw.socket in ready(raw.socket):
                    break
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert raw.answer()[0] == 413
        assert sent < 100
    assert peak() - before < 32


def ready(connection: socket.socket) -> list[socket.socket]:
    import select

    return select.select([connection], [], [], 0)[0]


def test_who_lies_about_the_length_gains_nothing(address: str, png: bytes):
    with Raw(address) as raw:
        raw.head("Content-Length: -5")
        assert raw.socket.recv(65536).split()[1] == b"400"
    with Raw(address) as raw:
        raw.head("Content-Length: 5", f"Content-Length: {len(png)}")
        assert raw.socket.recv(65536).split()[1] == b"400"
    with Raw(address) as raw:
        raw.head(f"Content-Length: {len(png) // 2}")
        raw.socket.sendall(png)
        assert raw.answer()[0] == 422


def test_requests_cut_off_midway(address: str, png: bytes):
    for part in (b"", png[:100], png[:-1]):
        with Raw(address) as raw:
            raw.head(f"Content-Length: {len(png)}")
            raw.socket.sendall(part)
    with Raw(address) as raw:
        raw.head("Transfer-Encoding: chunked")
        raw.socket.sendall(b"64\r\n" + png[:20])
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.socket.recv(100) == b""
    with Raw(address) as raw:
        raw.socket.sendall(b"POST /v1/segment HT")
    end = time.monotonic() + 10
    while "segmint_requests_in_progress 1.0" not in httpx.get(f"{address}/metrics").text:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert 'status="499"' in httpx.get(f"{address}/metrics").text


def test_who_sends_too_slowly_is_not_waited_for(address: str, png: bytes, monkeypatch):
    monkeypatch.setattr(limits, "LINGER", 0.2)
    begun = time.perf_counter()
    with Raw(address) as raw:
        raw.head(f"Content-Length: {len(png)}")
        raw.socket.sendall(png[:100])
        status, told = raw.answer()
        assert status == 408
        assert "100 bytes came in 2 seconds, and the rest did not" in told
    assert 1.5 < time.perf_counter() - begun < 10


def test_what_takes_too_long_is_given_up(several, models: Models, png: bytes):
    with several(models, Settings(seconds=0.2)) as (address, _):
        answer = httpx.post(f"{address}/v1/segment?model=slow", files={"image": png})
        refused(answer, 503, "longer than 0.2 seconds", "ask for less")
        assert answer.headers["retry-after"] == "10"


def test_who_comes_when_too_many_wait_is_sent_away(several, models: Models, png: bytes):
    settings = replace(Settings(), pairs=1, waiting=1, batch=1)
    with several(models, settings) as (address, app):
        service = app.state.service
        service.batcher.waiting = 0
        answer = httpx.post(f"{address}/v1/segment?model=plain", files={"image": png})
        refused(answer, 503, "0 images are waiting, and 0 at most may; try again")
        assert answer.headers["retry-after"] == "2"
        service.batcher.waiting = 1
        service._pixels = 8 * settings.pixels
        refused(httpx.post(f"{address}/v1/segment?model=plain", files={"image": png}), 503, "large images")
        service._pixels = 0
        assert httpx.get(f"{address}/ready").json() == {"status": "ok"}
        service.batcher.lengths = lambda: {"plain": 1}
        busy = httpx.get(f"{address}/ready")
        assert (busy.status_code, busy.json()) == (503, {"status": "busy"})


def test_images_with_many_draws_to_be_shown_count_as_several(several, models: Models, png: bytes):
    with several(models, Settings(draws=64)) as (address, app):
        service = app.state.service
        service._pixels = 8 * service.settings.pixels - 2 * 48 * 40
        asked = f"{address}/v1/segment?model=all&draws=64"
        answer = httpx.post(asked, files={"image": png})
        assert answer.json()["draws"] == 64
        refused(httpx.post(f"{asked}&include=alternatives", files={"image": png}), 503, "large images")
        service._pixels = 0
        answer = httpx.post(f"{asked}&include=alternatives", files={"image": png}).json()
        assert sum(one["weight"] for one in answer["alternatives"]) == pytest.approx(1)
        assert service._pixels == 0


def test_faults_of_the_server_are_told_without_their_secrets(several, models: Models, encode, png: bytes, monkeypatch):
    with several(models) as (address, _):
        white = {"image": encode(np.full((32, 24, 3), 255, np.uint8))}
        answer = httpx.post(f"{address}/v1/segment?model=failing", files=white)
        refused(answer, 500, "the server failed at this; its log says why")
        assert httpx.post(f"{address}/v1/segment?model=failing", files={"image": png}).status_code == 200
        monkeypatch.setattr("segmint.serve.service.read_uploaded_image", no_memory)
        refused(httpx.post(f"{address}/v1/segment?model=plain", files={"image": png}), 503, "not enough memory")


def no_memory(*_: object) -> None:
    raise MemoryError
