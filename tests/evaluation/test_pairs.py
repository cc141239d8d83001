import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist, pdist

from segmint.evaluation import pairs as module
from segmint.evaluation.pairs import (
    closeness,
    describe_pairs,
    distances,
    diversity,
    mean_distance,
    nearest,
    nearest_other,
)
from segmint.types import SegmintError


def points(count: int, seed: int = 0, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def embed(image: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(image, 4).flatten(1)


def test_distances_agree_with_scipy_and_are_zero_between_equals():
    a, b = points(7), points(5, 1)
    np.testing.assert_allclose(distances(a, b), cdist(a, b), rtol=1e-6)
    assert (distances(a, a).diagonal() == 0).all()
    assert mean_distance(a) == pytest.approx(pdist(a.double()).mean())
    assert math.isnan(mean_distance(a[:1]))


def test_diversity_is_0_for_one_image_1_for_real_ones_and_scales():
    real = points(20)
    assert diversity(real[:1].expand(8, -1), real) == 0
    assert diversity(real, real) == pytest.approx(1)
    assert diversity(real * 0.5 + 3, real) == pytest.approx(0.5, rel=1e-6)
    assert math.isnan(diversity(real, real[:1].expand(4, -1)))


def test_nearest_by_hand():
    line = torch.tensor([[0.0], [1.0], [5.0]])
    found, place = nearest(torch.tensor([[0.9], [9.0]]), line)
    assert found.tolist() == pytest.approx([0.1, 4])
    assert place.tolist() == [1, 2]
    assert nearest_other(line).tolist() == [1, 1, 4]
    assert nearest_other(line[:1]).tolist() == [math.inf]


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
