from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from segmint.cli import app
from segmint.inference import export as exporting
from segmint.inference import parity
from segmint.inference.export import export
from segmint.inference.exported import ExportedSegmenter, open_exported, opened
from segmint.inference.noise import Given, Noise, Recorder, noise_of
from segmint.inference.parity import Parity, segment_pixels
from segmint.inference.predict import predict
from segmint.inference.quantise import quantise
from segmint.inference.tracing import Traced, trace
from segmint.inference.wrapping import KEY, describe, shown_size
from segmint.methods.method import Method, build
from segmint.nets.encoders import SamePadConv2d
from segmint.nets.segmenter import logits_of
from segmint.seeds import Seeds
from segmint.training.run import Run, train
from segmint.types import SegmintError

QUICK = {"batch_size": 4, "precision": "float32", "steps": 4}


class Tiny(nn.Module):
    """Few layers, and what is hard to export: TensorFlow's padding, ReLU6, and sizes rounded up to whole strides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(SamePadConv2d(3, 16, 5, 2), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.head = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, image):
        x = self.stem(image)
        rows, columns = (-(-side // 4) * 4 for side in x.shape[-2:])
        x = nn.functional.pad(x, (0, columns - x.shape[-1], 0, rows - x.shape[-2]))
        return self.head(self.body(x))[..., : (image.shape[-2] + 1) // 2, : (image.shape[-1] + 1) // 2]


@pytest.fixture(scope="module")
def segmenter(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = {**QUICK, "steps": 40, "lr": 0.02, "augment": "none"}
    return train(shapes, out=tmp_path_factory.mktemp("tiny") / "run", settings=settings, network=Tiny())


class Wavering(Method):
    """Adds noise to its logits, and judges itself."""

    draws_differ = True

    def __init__(self, *, classes: int, in_channels: int = 3, image_size: tuple[int, int] = (32, 24)) -> None:
        super().__init__()
        self.network, self.judge = Tiny(), nn.Conv2d(classes, 1, 3, padding=1)

    def segment(self, image, seeds):
        logits = logits_of(self.network, image, 3)
        return logits + seeds.randn(3)[:, :, None, None] + 0.3 * seeds.randn(*logits.shape[1:])

    def errors(self, image, logits):
        return (self.judge(logits.softmax(1))[:, 0] + image.mean(1)).sigmoid()


@pytest.fixture(scope="module")
def drawer(segmenter: Run) -> Run:
    return with_method(segmenter, Wavering(classes=3))


def with_method(run: Run, method: Method) -> Run:
    changed = Run(run.folder)
    changed.__dict__["method"] = method.eval().requires_grad_(False)
    return changed


@pytest.fixture(scope="module")
def maker(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(shapes, method="vae", out=tmp_path_factory.mktemp("vae") / "run", settings=QUICK, width=8, latent=4)


@pytest.fixture(scope="module")
def traced(segmenter: Run) -> Traced:
    return trace(segmenter.method, "segment")


@pytest.fixture
def traced_once(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing takes seconds, and one graph serves many tests."""
    monkeypatch.setattr(exporting, "trace", lambda method, job: traced)


@pytest.fixture(scope="module")
def model(segmenter: Run, traced: Traced) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "trace", lambda method, job: traced)
        return export(segmenter).path


def pictures(count: int, size: tuple[int, int]) -> torch.Tensor:
    coarse = torch.rand(count, 3, 6, 5, generator=torch.Generator().manual_seed(size[0]))
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (255 * smooth).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def described(path: Path) -> dict[str, Any]:
    return json.loads({entry.key: entry.value for entry in onnx.load(path).metadata_props}[KEY])


@pytest.mark.parametrize(("count", "size"), [(1, (32, 24)), (3, (33, 50)), (2, (5, 7)), (1, (91, 40)), (1, (1, 1))])
def test_a_bare_runtime_gives_what_the_run_gives(segmenter: Run, model: Path, count: int, size: tuple[int, int]):
    image = pictures(count, size)
    labels, probabilities = onnxruntime.InferenceSession(model).run(None, {"image": image.numpy()})
    truth, likely = segment_pixels(segmenter.method, image, segmenter.size, Seeds.range(count))
    assert labels.shape == (count, *size)
    assert labels.dtype == np.uint8
    assert np.abs(probabilities - likely.detach().numpy()).max() < 1e-4
    assert (labels == truth.numpy()).mean() > 0.999


def test_predict_takes_the_file_in_place_of_the_run(segmenter: Run, model: Path, shapes: Path):
    image = shapes / "images" / "01.png"
    ours, theirs = predict(segmenter, image, draws=1), predict(model, image)
    assert torch.allclose(ours.probabilities, theirs.probabilities, atol=1e-4)
    assert torch.equal(ours.labels, theirs.labels)
    assert theirs.names == ours.names
    assert theirs.colors == ours.colors
    assert theirs.epistemic is None
    assert torch.equal(predict([model, model], image).labels, theirs.labels)


def test_the_model_says_what_it_is_and_not_where_it_was_made(segmenter: Run, model: Path, shapes: Path):
    twin = open_exported(model)
    assert twin.classes == segmenter.classes
    assert twin.size == segmenter.size
    assert twin.settings.depth == segmenter.settings.depth
    assert twin.method.name == "supervised"
    assert twin.method.capabilities() == {"segment"}
    assert not twin.method.draws_differ
    assert twin.method.config["in_channels"] == 3
    assert twin.precision == "float32"
    assert described(model)["precision"] == "float32"
    content = model.read_bytes()
    assert all(str(place).encode() not in content for place in (shapes, segmenter.folder, Path(__file__).parent))
    assert opened(segmenter) is segmenter
    assert opened(segmenter.folder).folder == segmenter.folder
    assert [value.name for value in onnx.load(model).graph.input] == ["image"]


@pytest.mark.usefixtures("traced_once")
def test_openvino_gives_the_same(segmenter: Run, tmp_path: Path):
    made = export(segmenter, "openvino", out=tmp_path / "model.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert made.parity.difference < 1e-4
    image = pictures(2, (61, 83))
    twin = open_exported(tmp_path / "model.xml")
    assert twin.classes == segmenter.classes
    assert isinstance(twin.method, ExportedSegmenter)
    likely = segment_pixels(segmenter.method, image, segmenter.size, Seeds.range(2))[1]
    assert torch.allclose(twin.method.segment_pixels(image, Seeds.range(2))[1], likely, atol=1e-4)
    shown = torch.rand(2, 3, 19, 33) * 2 - 1
    ours = segmenter.method.segment(shown, Seeds.range(2))
    assert torch.allclose(twin.method.segment(shown, Seeds.range(2)), ours, atol=1e-4)
    rough = open_exported(tmp_path / "model.xml", "bfloat16").method.segment(shown, Seeds.range(2))
    assert (rough.softmax(1) - ours.softmax(1)).abs().max() < 0.1
    (tmp_path / "model.bin").unlink()
    with pytest.raises(SegmintError, match="missing; it belongs to"):
        open_exported(tmp_path / "model.xml")


@pytest.mark.usefixtures("traced_once")
def test_a_signal_after_openvino_models_came_and_went_is_handled(segmenter: Run, tmp_path: Path):
    path = export(segmenter, "openvino", out=tmp_path / "model.xml").path
    code = (
        "import faulthandler, gc, os, signal, torch\n"
        "from segmint.inference.exported import open_exported\n"
        "from segmint.seeds import Seeds\n"
        "faulthandler.enable()\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: print('handled'))\n"
        f"used = [open_exported({str(path)!r}) for _ in range(4)]\n"
        "for run in used:\n"
        "    run.method.segment(torch.zeros(1, 3, 16, 16), Seeds.range(1))\n"
        "del run\n"
        "while used:\n"
        "    del used[0]; gc.collect()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_noise_is_an_input_and_draws_are_those_of_the_run(drawer: Run, tmp_path: Path, shapes: Path):
    path = export(drawer, out=tmp_path / "draws.onnx").path
    assert [entry["shape"] for entry in described(path)["noise"]] == [[3], [3, "height", "width"]]
    twin = open_exported(path).method
    assert twin.draws_differ
    image = torch.rand(2, 3, 31, 45) * 2 - 1
    ours = list(drawer.method.draws(image, Seeds([4, 5]), 2))
    theirs = list(twin.draws(image, Seeds([4, 5]), 2))
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(ours, theirs, strict=True))
    assert not torch.allclose(theirs[0], theirs[1], atol=1e-2)
    assert torch.allclose(drawer.method.errors(image, ours[0]), twin.errors(image, ours[0]), atol=1e-5)
    assert torch.equal(twin.segment(image, Seeds([4, 5])), twin.segment(image, Seeds([4, 5])))
    session = onnxruntime.InferenceSession(path)
    size = shown_size((40, 60), min(drawer.size))
    feed = {entry.name: entry.draw(Seeds([0]), size).numpy() for entry in map(Noise.of, described(path)["noise"])}
    first = session.run(["probabilities"], {"image": pictures(1, (40, 60)).numpy(), **feed})[0]
    feed["noise_0"] = -feed["noise_0"]
    other = session.run(["probabilities"], {"image": pictures(1, (40, 60)).numpy(), **feed})[0]
    assert np.abs(first - other).max() > 1e-3
    picture = shapes / "images" / "02.png"
    a, b = predict(drawer, picture, draws=3, seed=7), predict(path, picture, draws=3, seed=7)
    assert torch.allclose(a.probabilities, b.probabilities, atol=1e-3)
    assert torch.allclose(a.errors, b.errors, atol=1e-3)
    errors = session.run(["errors"], {"image": pictures(1, (40, 60)).numpy(), **feed})[0]
    assert errors.shape == (1, 40, 60)


def test_generators_are_exported_too(maker: Run, tmp_path: Path):
    made = export(maker, out=tmp_path / "pairs.onnx")
    assert (made.job, made.precision) == ("generate", "float32")
    twin = open_exported(made.path)
    ours, theirs = maker.method.generate(Seeds([3, 9])), twin.method.generate(Seeds([3, 9]))
    assert torch.allclose(ours.image, theirs.image, atol=1e-4)
    assert torch.equal(ours.mask, theirs.mask)
    noise = Seeds([3, 9]).randn(4).numpy()
    image, mask = onnxruntime.InferenceSession(made.path).run(None, {"noise_0": noise})
    assert (image.shape, image.dtype) == ((2, 32, 24, 3), np.uint8)
    assert (mask == ours.mask.numpy()).all()
    with pytest.raises(SegmintError, match="does not segment"):
        predict(twin, "x.png")
    with pytest.raises(SegmintError, match="cannot paint"):
        twin.method.generate(Seeds([0]), mask=torch.zeros(1, 32, 24, dtype=torch.int64))
    with pytest.raises(SegmintError, match="--int8: is for segmenters"):
        export(maker, int8=True)


class Painter(Method):
    """Each class has a colour, with a little noise."""

    conditions = frozenset({"mask"})
    needs_mask = True

    def __init__(self, *, classes: int, in_channels: int = 3, image_size: tuple[int, int] = (32, 24)) -> None:
        super().__init__()
        self.colors = nn.Embedding(classes + 1, in_channels)
        self.classes = classes

    def generate(self, seeds, mask=None, previous=None, image=None):
        from segmint.types import Batch

        painted = self.colors(mask.clamp_max(self.classes)).permute(0, 3, 1, 2)
        return Batch((painted + 0.1 * seeds.randn(3, *mask.shape[1:])).clamp(-1, 1), mask)


def test_painters_take_a_mask(maker: Run, tmp_path: Path):
    method = Painter(classes=3)
    made = export(with_method(maker, method), out=tmp_path / "paint.onnx")
    assert made.job == "paint"
    twin = open_exported(made.path).method
    mask = torch.randint(3, (2, 21, 37))
    ours, theirs = method.generate(Seeds([1, 2]), mask), twin.generate(Seeds([1, 2]), mask)
    assert torch.allclose(ours.image, theirs.image, atol=1e-5)
    noise = Seeds([1, 2]).randn(3, 21, 37).numpy()
    image = onnxruntime.InferenceSession(made.path).run(
        ["image"], {"mask": mask.to(torch.uint8).numpy(), "noise_0": noise}
    )[0]
    assert np.abs(image.astype(int) - ((ours.image + 1) * 127.5).permute(0, 2, 3, 1).numpy()).max() <= 0.51
    with pytest.raises(SegmintError, match="give it masks"):
        twin.generate(Seeds([0]))


@pytest.mark.usefixtures("traced_once")
def test_eight_bits(segmenter: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exporting, "FLOATING", (1, 0))
    made = export(segmenter, int8=True, out=tmp_path / "small.onnx", points=5)
    assert made.precision == "int8"
    assert made.parity.before is not None
    assert abs(made.parity.before - made.parity.after) <= 5
    assert "mean IoU" in str(made.parity)
    kinds = [node.op_type for node in onnx.load(made.path).graph.node]
    assert kinds.count("QuantizeLinear") >= 3
    image = pictures(2, (40, 61))
    truth = segment_pixels(segmenter.method, image, segmenter.size, Seeds.range(2))[0]
    labels, _ = open_exported(made.path).method.segment_pixels(image, Seeds.range(2))
    assert (labels == truth).float().mean() > 0.9
    with pytest.raises(SegmintError, match="points less; export it without --int8"):
        export(segmenter, int8=True, out=tmp_path / "bad.onnx", points=-200)
    assert not list(tmp_path.glob("*bad*"))


def test_scales_of_weights_are_by_channel_and_the_first_layers_stay(traced: Traced):
    before = traced.model.SerializeToString()
    feeds = [{"shown": np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 24)).astype(np.float32)}]
    small = quantise(traced.model, feeds, floating=1)
    assert traced.model.SerializeToString() == before
    scales = [onnx.numpy_helper.to_array(entry) for entry in small.graph.initializer if entry.name.endswith("_scale")]
    assert any(scale.shape == (16,) for scale in scales)
    first = next(node for node in small.graph.node if node.op_type == "Conv")
    assert first.input[0] == "shown"


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("name", ["PROBABILITY", "AGREEMENT"])
def test_models_that_differ_are_refused_and_removed(
    segmenter: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(parity, name, -1.0 if name == "PROBABILITY" else {"float32": 1.1})
    for to, suffix in (("onnx", "onnx"), ("openvino", "xml")):
        with pytest.raises(SegmintError, match=r"the exported model (differs by up to|agrees on)"):
            export(segmenter, to, out=tmp_path / f"model.{suffix}")
    assert not list(tmp_path.iterdir())


def test_what_is_tolerated():
    assert Parity(3, 1e-5, 1.0).broken("float32") is None
    assert "differs by up to nan" in str(Parity(3, float("nan"), 1.0).broken("float32"))
    assert "agrees on 99.00%" in str(Parity(3, 1e-5, 0.99).broken("float32"))
    assert Parity(3, 0.2, 0.99, 50.0, 49.6).broken("int8") is None
    assert "49.40 instead of 50.00" in str(Parity(3, 0.2, 0.99, 50.0, 49.4).broken("int8"))
    assert Parity(3, 0.2, 0.99, 50.0, 49.4).broken("int8", points=1) is None


@pytest.mark.usefixtures("traced_once")
def test_without_its_data_a_run_is_compared_on_noise(segmenter: Run, tmp_path: Path):
    gone = Run(segmenter.folder, segmenter.modules)
    gone.__dict__["settings"] = segmenter.settings.model_copy(update={"data": str(tmp_path / "gone")})
    assert export(gone, out=tmp_path / "model.onnx").parity.images == 10
    with pytest.raises(SegmintError, match="is gone; name images to calibrate with: --calibrate DATA"):
        export(gone, int8=True)
    assert export(gone, int8=True, calibrate=segmenter.settings.data, out=tmp_path / "8.onnx", points=9).parity.after


@pytest.mark.parametrize("name", ["gmm", "cutpaste"])
def test_methods_without_a_network_say_so(name: str):
    with pytest.raises(SegmintError, match=f"{name}: has no network that could be exported"):
        trace(build(name, classes=3, in_channels=3, image_size=(32, 24)), "generate")


class Peculiar(Painter):
    """Does whatever it is told to do with its seeds."""

    conditions = frozenset()
    needs_mask = False
    trick = staticmethod(lambda seeds: seeds.randn(3, 8, 8))

    def generate(self, seeds, mask=None, previous=None, image=None):
        from segmint.types import Batch

        made = self.trick(seeds) + self.colors.weight[0, :1, None, None]
        return Batch(made, made.argmax(1))


@pytest.mark.parametrize(
    ("trick", "words"),
    [
        (lambda seeds: torch.zeros(2, 3, seeds.values[0], 8), "takes more from its seeds"),
        (lambda seeds: seeds.randn(3, 8, 8) if bool(seeds.randn(1).sum() > 0) else seeds.randn(3, 8, 9), "no graph"),
    ],
)
def test_what_is_no_graph_is_refused(trick, words: str):
    method = Peculiar(classes=3).eval()
    method.trick = trick
    with pytest.raises(SegmintError, match=words):
        trace(method, "generate")


def test_noise_that_no_rule_explains_is_refused():
    with pytest.raises(SegmintError, match="has a side of 194"):
        noise_of(lambda seeds, size: seeds.randn(2 * size[0]))
    counts = iter([1, 2])
    with pytest.raises(SegmintError, match="other random numbers each time"):
        noise_of(lambda seeds, size: [seeds.rand() for _ in range(next(counts))])


def test_all_kinds_of_noise_are_drawn_as_the_method_would():
    def method(seeds: Seeds, size: tuple[int, int]) -> list[torch.Tensor]:
        inner = seeds.fork("draw", 0)
        return [inner.randn(4, *size), inner.rand(), inner.integers(7, size[1]), inner.randn(-(-size[0] // 2), 3)]

    found = noise_of(method)
    assert [entry.shape for entry in found] == [(4, "height", "width"), (), ("width",), ("height/2", 3)]
    assert [Noise.of(json.loads(json.dumps(entry.facts()))) for entry in found] == list(found)
    seeds = Seeds([5, 6])
    drawn = [entry.draw(seeds, (3, 9)) for entry in found]
    expected = Seeds([5, 6])
    assert torch.equal(drawn[0], expected.randn(4, 3, 9))
    assert torch.equal(drawn[1], expected.rand())
    assert torch.equal(drawn[2], expected.integers(7, 9))
    assert torch.equal(drawn[3], expected.randn(2, 3))
    given = Given(drawn)
    assert len(given) == len(Recorder(2)) == 2
    assert all(a is b for a, b in zip(method(given, (3, 9)), drawn, strict=True))


def test_wrong_orders_are_refused(segmenter: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SegmintError, match="--to tflite: there is no such format; choose onnx or openvino"):
        export(segmenter, "tflite")
    with pytest.raises(SegmintError, match=r"--job paint: supervised cannot; choose segment"):
        export(segmenter, job="paint")
    with pytest.raises(SegmintError, match=r"must end in \.onnx for onnx"):
        export(segmenter, out=tmp_path / "model.xml")
    with pytest.raises(SegmintError, match="supervised: cannot generate; it can segment"):
        trace(segmenter.method, "generate")
    run = Run(segmenter.folder)
    run.__dict__["method"] = build(
        "denoise", classes=3, image_size=(32, 24), encoder_name="plain", encoder_weights=None
    )
    with pytest.raises(SegmintError, match="denoise prepares others"):
        export(run)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SegmintError, match=r"onnxscript is not installed.*pip install 'segmint\[export\]'"):
        export(segmenter)


def test_files_that_are_no_models_of_ours_are_refused(model: Path, tmp_path: Path):
    with pytest.raises(SegmintError, match=r"no\.onnx: no such file"):
        open_exported(tmp_path / "no.onnx")
    with pytest.raises(SegmintError, match=r"not an exported model; give \*\.onnx or \*\.xml"):
        open_exported(tmp_path)
    with pytest.raises(SegmintError, match="cannot compute in bfloat16"):
        open_exported(model, "bfloat16")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(SegmintError, match=r"broken\.onnx: damaged"):
        open_exported(broken)
    (tmp_path / "broken.xml").write_text("<net")
    (tmp_path / "broken.bin").write_bytes(b"")
    with pytest.raises(SegmintError, match=r"broken\.xml: damaged"):
        open_exported(tmp_path / "broken.xml")
    content = onnx.load(model)
    describe(content, {**described(model), "format": 0})
    onnx.save(content, tmp_path / "old.onnx")
    with pytest.raises(SegmintError, match="exported by another version of Segmint"):
        open_exported(tmp_path / "old.onnx")
    del content.metadata_props[:]
    onnx.save(content, tmp_path / "other.onnx")
    with pytest.raises(SegmintError, match="does not say what it is"):
        open_exported(tmp_path / "other.onnx")
    describe(content, described(model))
    content.graph.node[0].op_type = "Nonsense"
    onnx.save(content, tmp_path / "odd.onnx")
    with pytest.raises(SegmintError, match="onnxruntime cannot run it"):
        open_exported(tmp_path / "odd.onnx").method.segment_pixels(pictures(1, (8, 8)), Seeds([0]))


def test_the_command(maker: Run, tmp_path: Path):
    out = tmp_path / "made.onnx"
    told = CliRunner().invoke(app, ["export", str(maker.folder), "--out", str(out)])
    assert told.exit_code == 0, told.output
    assert "same class on 100.000% of the pixels" in told.output
    assert out.is_file()
