from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from segmint.inference.export import export
from segmint.inference.generate import make_block, to_bytes
from segmint.inference.predict import predict_pixels
from segmint.serve.models import Models, UnknownModelError, as_channels, name_of
from segmint.training.run import Run, train
from segmint.types import IGNORE, SegmintError


def test_what_a_model_can_do(models: Models):
    jobs = {model.name: model.jobs for model in models}
    assert jobs["all"] == ("segment", "draws", "generate", "paint", "repaint")
    assert jobs["plain"] == ("segment",)
    assert jobs["painter"] == ("paint",)
    assert models.able("generate") == ("all",)
    assert (models["plain"].size, models["plain"].channels, len(models)) == ((32, 24), 3, 5)
    assert (models["all"].usual_draws, models["plain"].usual_draws) == (16, 1)


def test_segment_is_what_predict_says(models: Models, pixels: np.ndarray):
    for name in ("all", "plain"):
        found = models.segment(name, pixels, seed=5)
        expected = predict_pixels([models[name].run], pixels, seed=5)
        for field in fields(expected):
            ours, theirs = getattr(found, field.name), getattr(expected, field.name)
            if isinstance(ours, torch.Tensor):
                assert torch.equal(ours, theirs), field.name
    assert torch.equal(models["all"].probabilities((40, 48), drawn(models, pixels)[0]), drawn_whole(models, pixels))


def drawn(models: Models, *images: np.ndarray):
    model = models["all"]
    return model.draw([model.shown(image) for image in images], [5] * len(images), 3)


def drawn_whole(models: Models, pixels: np.ndarray) -> torch.Tensor:
    return models.segment("all", pixels, draws=3, seed=5).probabilities


def test_a_batch_gives_what_each_would_alone(models: Models, pixels: np.ndarray):
    model, images = models["all"], [pixels, pixels[::-1], pixels[:, ::-1]]
    together = model.draw([model.shown(image) for image in images], [3, 4, 5], 6)
    for image, seed, found in zip(images, (3, 4, 5), together, strict=True):
        alone = model.draw([model.shown(image)], [seed], 6)[0]
        assert torch.equal(found.masks, alone.masks)
        for key in ("probabilities", "uncertainty", "aleatoric", "errors"):
            torch.testing.assert_close(getattr(found, key), getattr(alone, key))
        assert found.expected_dice() == pytest.approx(alone.expected_dice())


def test_generate_makes_the_pairs_of_segmint_generate(models: Models):
    pairs = models.generate("all", 3, seed=2)
    batch = make_block(models["all"].run, [2_000_000, 2_000_001, 2_000_002])
    for place, pair in enumerate(pairs):
        image, mask = to_bytes(batch, place)
        assert np.array_equal(pair.image, image)
        assert np.array_equal(pair.mask, mask)


def test_paint_takes_masks_of_any_size_and_photographs(models: Models, pixels: np.ndarray):
    mask = np.zeros((64, 48), np.int64)
    mask[32:] = 2
    painted = models.paint("painter", mask)
    assert painted.shape == (32, 24, 3)
    assert painted[:16].mean() < 30
    assert painted[16:].mean() > 220
    assert not np.array_equal(painted, models.paint("painter", mask, seed=1))
    free = models.paint("all", np.full((32, 24), IGNORE))
    assert free.std() > 50
    over = models.paint("all", mask, image=np.zeros_like(pixels))
    assert over[16:].mean() < 140


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda m, p: m.segment("nobody", p), "there is no 'nobody'; there are all, plain"),
        (lambda m, p: m.segment("x" * 500, p), "x\\.\\.\\.'"),
        (lambda m, p: m.segment("painter", p), "cannot segment; it can paint masks"),
        (lambda m, p: m.segment("plain", p, draws=4), "4 draws would all be the same; leave draws out"),
        (lambda m, p: m.segment("all", p, draws=0), "at least 1"),
        (lambda m, p: m.segment("all", p[:1, :1]), "image: is 1 x 1 pixels; give one with 8"),
        (lambda m, p: m.segment("all", np.zeros((9, 90_000, 3), np.uint8)), "too long and thin"),
        (lambda m, p: m.segment("all", p.astype(float)), "must be uint8"),
        (lambda m, p: m.segment("all", p[None]), "must be uint8"),
        (lambda m, p: m.generate("plain"), "'plain': cannot make pairs; it can segment"),
        (lambda m, p: m.generate("all", 0), "count: must be at least 1"),
        (lambda m, p: m.paint("plain", p[..., 0]), "cannot paint masks"),
        (lambda m, p: m.paint("painter", p[..., 0] % 3, image=p), "cannot paint over photographs"),
        (lambda m, p: m.paint("painter", p[..., 0] % 3 + 1), "mask: holds 3, but the classes .* are 0 to 2"),
        (lambda m, p: m.paint("painter", p), "mask: must be whole numbers"),
        (lambda m, p: m.paint("painter", p[:1, :1, 0]), "mask: is 1 x 1 pixels"),
    ],
)
def test_what_cannot_be_done_is_told(models: Models, pixels: np.ndarray, work, told: str):
    with pytest.raises(SegmintError, match=told):
        work(models, pixels)


def test_models_have_names_of_their_own(models: Models, tmp_path):
    assert name_of(tmp_path / "runs" / "a" / "model.onnx") == "a-model"
    (tmp_path / "my run (1)").mkdir()
    assert name_of(Run(tmp_path / "my run (1)")) == "my-run-1-"
    assert models.names == ("all", "plain", "painter", "slow", "failing")
    run = models["plain"].run
    for sources, told in (
        ([], "none given"),
        ([run, run], "'plain': is used twice"),
        ({"../a": run}, "use letters, digits"),
        ({"": run}, "use letters, digits"),
        ([tmp_path / "nothing"], "no method.json"),
    ):
        with pytest.raises(SegmintError, match=told):
            Models(sources)
    with pytest.raises(SegmintError, match="--device nonsense: cannot be used"):
        Models([run], device="nonsense")
    with pytest.raises(UnknownModelError):
        models["../plain"]


def test_a_method_that_does_nothing_is_not_served(models: Models, monkeypatch: pytest.MonkeyPatch):
    run = Run(models["plain"].run.folder)
    run.__dict__.update(models["plain"].run.__dict__)
    monkeypatch.setattr(type(run.method), "capabilities", classmethod(lambda cls: frozenset()))
    with pytest.raises(SegmintError, match="neither segments nor generates"):
        Models({"nothing": run})


def test_images_get_the_channels_of_the_model():
    color = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    assert as_channels(color, 1).tolist() == [[[76], [76]], [[76], [76]]]
    assert as_channels(color[..., 0], 3).tolist() == [[[255] * 3] * 2] * 2
    same = as_channels(color, 3)
    assert np.array_equal(same, color)
    assert not np.shares_memory(same, color)


def test_exported_models_take_the_place_of_runs(shapes, tmp_path, pixels: np.ndarray):
    quick = {"batch_size": 4, "precision": "float32", "steps": 1}
    run = train(shapes, out=tmp_path / "run", settings=quick, network=torch.nn.Conv2d(3, 3, 3, padding=1))
    file = export(run, "onnx", out=tmp_path / "run" / "model.onnx").path
    models = Models([file, run])
    assert models.names == ("run-model", "run")
    assert (models["run-model"].jobs, models["run"].jobs) == (("segment",), ("segment",))
    ours, theirs = (models.segment(name, pixels) for name in models.names)
    torch.testing.assert_close(ours.probabilities, theirs.probabilities, atol=1e-5, rtol=0)
