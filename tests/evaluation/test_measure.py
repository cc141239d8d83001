import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from segmint.evaluation.measure import as_tables, compare_features, measure, real_of
from segmint.types import SegmintError


def embed(image: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(image, 4).flatten(1)


@pytest.fixture
def many(pairs):
    """The generated pairs, all kept."""
    lines = (pairs / "manifest.jsonl").read_text().replace("false", "true")
    (pairs / "manifest.jsonl").write_text(lines)
    return pairs


def test_pairs_are_measured_against_both_splits(many, data, make_run):
    found = measure(many, data, embed=embed, segmenter=make_run("run"))
    assert (found["split"], found["method"], found["images"]) == ("train", "vae", [6, 8])
    assert found["size"] == [32, 24]
    assert found["real"] is None
    assert found["generated"]["kernel_distance_error"] > 0
    assert 0 <= found["generated"]["coverage"] <= 1
    assert found["memorisation"]["nearer_than_fresh"] is not None
    for side in ("real", "generated"):
        assert sum(row[side] for row in found["class_shares"].values()) == pytest.approx(1)
    other = measure(many, data, split="val", indices=range(7), embed=embed)
    assert other["agreement"] is None
    stored = json.loads((many / "measures.json").read_text())
    assert list(stored) == ["train", "val"]
    assert stored["train"] == found


def test_the_yardstick_is_other_real_images(many, data):
    found = measure(many, data, indices=range(6), embed=embed)
    assert found["real"]["images"] == 6
    assert found["real"]["diversity"] == pytest.approx(1, abs=0.5)
    few = measure(many, data, indices=[0, 1, 2, 6, 7, 8], embed=embed)
    assert few["real"] is None
    assert few["compared"] == [6, 6]


def test_real_images_are_nearer_to_real_ones_than_noise_is():
    generator = torch.Generator().manual_seed(0)
    real, more = torch.randn(80, 5, generator=generator), torch.randn(80, 5, generator=generator)
    near, far = compare_features(more, real), compare_features(3 * more + 4, real)
    assert near["frechet_distance"] < far["frechet_distance"]
    assert near["kernel_distance"] < 3 * near["kernel_distance_error"] < far["kernel_distance"]
    for figure in ("precision", "recall", "density", "coverage"):
        assert near[figure] > far[figure]


def test_masks_that_fit_agree_and_masks_that_do_not_disagree(many, data, make_run):
    seeing, blind = make_run("seeing"), make_run("blind", blind=True)
    fits = measure(many, data, embed=embed, segmenter=seeing)["agreement"]
    assert fits["miou"]["value"] > 0.95
    assert fits["miou"]["low"] <= fits["miou"]["value"] <= fits["miou"]["high"]
    assert set(fits["iou"]) == {"ground", "square", "disc"}
    lost = measure(many, data, embed=embed, segmenter=blind)["agreement"]
    assert lost["iou"]["square"] == 0
    assert lost["accuracy"]["value"] < fits["accuracy"]["value"]


def test_ignored_pixels_are_told(many, data):
    mask = np.array(Image.open(many / "masks" / "0.png"))
    mask[:16] = 255
    Image.fromarray(mask).save(many / "masks" / "0.png")
    assert measure(many, data, embed=embed)["ignored"] == pytest.approx(0.5 / 6)


def test_the_table_tells_every_figure(many, data, make_run):
    found = measure(many, data, embed=embed, segmenter=make_run("run"))
    console = Console(width=140, record=True)
    console.print(as_tables(found, "pairs"))
    told = console.export_text()
    for words in (
        "disc",
        "IoU",
        "Frechet distance (EfficientNet-Lite0)",
        "kernel distance",
        "coverage",
        "mask agreement, mIoU",
    ):
        assert words in told
    found["real"] = {"images": 6, **found["generated"]}
    found["memorisation"]["nearer_than_fresh"] = None
    found["agreement"] = None
    console.print(as_tables(found, "pairs"))
    assert "mask agreement, mIoU" not in console.export_text()


def test_too_few_pairs_and_untold_data_are_refused(pairs, data, tmp_path, make_run):
    with pytest.raises(SegmintError, match="6 images on either side"):
        measure(pairs, data, embed=embed)
    with pytest.raises(SegmintError, match="name DATA"):
        real_of(pairs)
    run = make_run("maker")
    (pairs / "manifest.jsonl").write_text(json.dumps({"name": "0", "run": str(run)}) + "\n")
    assert real_of(pairs) == data.root


def test_frechet_distance_is_not_nan_for_few_images(many, data):
    assert math.isfinite(measure(many, data, embed=embed)["generated"]["frechet_distance"])
