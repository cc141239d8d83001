import json

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.evaluation import pairs as module
from segmint.evaluation.pairs import closeness, describe_pairs, embedder
from segmint.types import SegmintError


def points(count: int, seed: int = 0, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def embed(image: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(image, 4).flatten(1)


def test_copies_are_suspected_and_further_real_images_are_not():
    real = points(400)
    copies = closeness(real[:50] + 1e-3 * points(50, 2), real)
    assert copies["near_duplicates"] == 50
    assert copies["nearest_ratio"] < 0.02
    fresh = closeness(points(400, 3), real)
    assert fresh["nearest_ratio"] == pytest.approx(1, abs=0.1)
    assert fresh["near_duplicates"] == pytest.approx(fresh["expected"], abs=15)
    repeated = closeness(points(1, 4).expand(30, -1), real)
    assert repeated["repeats"] == 30


def test_a_generated_folder_is_described(pairs, data):
    found = describe_pairs(pairs, data, size=(32, 24), indices=data.split("train"), embed=embed, count=4)
    assert json.loads((pairs / "pairs.json").read_text()) == found
    assert (found["method"], found["images"], found["left_out"]) == ("vae", 5, 1)
    assert found["diversity"] == pytest.approx(1, abs=0.4)
    assert len(found["shown"]) == 4
    shares = found["class_shares"]
    assert list(shares) == ["ground", "square", "disc"]
    for side in ("real", "generated"):
        assert sum(row[side] for row in shares.values()) == pytest.approx(1)
    picture = np.asarray(Image.open(pairs / "pictures" / "pairs.png"))
    assert picture.std() > 20


def test_the_nearest_neighbour_shown_is_the_image_it_was_copied_from(pairs, shapes, data):
    for index in range(6):
        (pairs / "images" / f"{index}.png").write_bytes((shapes / "images" / f"{index + 6:02d}.png").read_bytes())
    found = describe_pairs(pairs, shapes, size=(32, 24), indices=data.split("train"), embed=embed)
    assert found["shown"] == [[str(index), f"{index + 6:02d}"] for index in range(5)]
    assert found["nearest_ratio"] == 0
    assert found["near_duplicates"] == 5


def test_large_sets_are_thinned_out_evenly(monkeypatch, pairs, data):
    monkeypatch.setattr(module, "MOST", 3)
    found = describe_pairs(pairs, data, size=(16, 16), indices=data.split("train"), embed=embed)
    assert found["compared"] == [3, 3]
    assert [name for name, _ in found["shown"]] == ["0", "1", "3"]


def test_other_classes_and_too_few_images_are_refused(pairs, data):
    with pytest.raises(SegmintError, match="two images on either side"):
        describe_pairs(pairs, data, size=(32, 24), indices=[0], embed=embed)
    (pairs / "manifest.jsonl").unlink()
    assert describe_pairs(pairs, data, size=(16, 16), indices=[0, 1], embed=embed)["method"] == ""
    (pairs / "classes.yaml").write_text("classes: [{id: 0, name: a}, {id: 1, name: b}, {id: 2, name: c}]")
    with pytest.raises(SegmintError, match="its classes are not those of"):
        describe_pairs(pairs, data, size=(32, 24), indices=[0, 1], embed=embed)


def test_the_usual_features_are_pooled_ones_of_efficientnet_lite0():
    image = torch.rand(2, 1, 32, 24) * 2 - 1
    with torch.inference_mode():
        found = embedder(1)(image)
    assert found.shape == (2, 1280)
    assert (found[0] != found[1]).any()
