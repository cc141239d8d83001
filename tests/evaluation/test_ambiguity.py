"""Runs with draws on images with several raters."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.data.folder import open_folder
from segmint.evaluation.ambiguity import mean_dice, set_figures
from segmint.evaluation.compare import compare
from segmint.evaluation.evaluate import evaluate
from segmint.evaluation.report import write_report
from segmint.evaluation.tables import SETS
from segmint.functional import ambiguity
from segmint.methods.method import Method
from segmint.types import IGNORE, SegmintError

ITEMS = 6


@pytest.fixture(scope="module")
def opinions(tmp_path_factory):
    """Grey images of a bright disc: of four raters one sees nothing and three see discs of various sizes."""
    root = tmp_path_factory.mktemp("opinions")
    (root / "images").mkdir()
    (root / "splits").mkdir()
    rows, columns = np.mgrid[:24, :24]
    for index in range(ITEMS):
        name = f"{index:02d}"
        away = (rows - 8 - index) ** 2 + (columns - 10) ** 2
        image = np.where(away < 30, 220, 40) + np.random.default_rng(index).normal(0, 5, away.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{name}.png")
        (root / "masks" / name).mkdir(parents=True)
        for rater, radius in enumerate((0, 20, 30, 45)[: 4 if index else 1]):
            mask = (away < (radius if index else 30)).astype(np.uint8)
            Image.fromarray(mask).save(root / "masks" / name / f"{rater}.png")
    (root / "classes.yaml").write_text("classes: [{id: 0, name: tissue}, {id: 1, name: nodule}]\n")
    for split, members in {"val": range(ITEMS), "test": range(0), "train": range(0)}.items():
        (root / "splits" / f"{split}.txt").write_text("".join(f"{index:02d}\n" for index in members))
    return open_folder(root)


class Guess(Method):
    """Takes what is bright for a nodule: always, or in `share` of its draws."""

    def __init__(self, *, classes=2, in_channels=1, image_size=(24, 24), share=None, judge=False):
        super().__init__()
        self.share, self.judge = share, judge
        self.draws_differ = share is not None

    def segment(self, image, seeds):
        level = 4 * image
        if self.share is not None:
            seen = seeds.rand(1).view(-1, 1, 1, 1) < self.share
            level = torch.where(seen, level, torch.full_like(level, -4.0))
        return torch.cat([-level, level], 1)

    def errors(self, image, logits):
        return 1 - logits.softmax(1).amax(1) if self.judge else None


class Doubting(Method):
    """Some class for the whole image, another in each draw."""

    draws_differ = True

    def __init__(self, *, classes=3, in_channels=3, image_size=(32, 24)):
        super().__init__()

    def segment(self, image, seeds):
        return 5 * seeds.randn(3, 1, 1, device=image.device).expand(-1, -1, *image.shape[2:])


@pytest.fixture
def score(make_run, opinions):
    """score(name, share) -> (its folder, its entry)."""

    def make(name, share=None, pictures=False, **rest):
        learner = Guess(classes=2, share=share, judge=rest.pop("judge", False))
        run = make_run(name, learner=learner, data=str(opinions.root), size=(24, 24), **rest)
        return run, evaluate(run, opinions, "val", pictures=pictures, resamples=50)

    return make


def test_figures_of_one_image_are_those_of_the_functions():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(2, (3, 6, 6), generator=generator)
    raters = torch.randint(2, (4, 6, 6), generator=generator)
    found = dict(zip(SETS, set_figures(draws, raters, 2).tolist(), strict=True))
    across, own, among = (
        ambiguity.distances(*pair, (1,)) for pair in ((draws, raters), (draws, draws), (raters, raters))
    )
    assert found["ged"] == pytest.approx(float(ambiguity.ged(across, own, among)))
    assert found["ged_raters"] == pytest.approx(float(among.mean()) / 3)
    assert found["ged_single"] <= found["ged_majority"]
    assert found["diversity_raters"] == pytest.approx(float(among.sum()) / 12)
    single = dict(zip(SETS, set_figures(draws[:1], raters, 2).tolist(), strict=True))
    assert single["diversity_draws"] == 0  # a method whose draws do not differ
    assert single["ged_unbiased"] == pytest.approx(2 * float(across[0].mean()) - found["diversity_raters"])
    alone = dict(zip(SETS, set_figures(draws, raters[:1], 2).tolist(), strict=True))
    assert np.isnan(alone["ged_unbiased"])
    assert np.isnan(alone["diversity_raters"])
    assert alone["ged_raters"] == 0


def test_dice_with_raters_leaves_out_the_unknown():
    mask = torch.tensor([[0, 1, 1]])
    raters = torch.tensor([[[0, 1, 1]], [[0, 0, 1]], [[0, 1, IGNORE]]])
    assert mean_dice(mask, raters, 2) == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert np.isnan(mean_dice(mask, torch.full((2, 1, 3), IGNORE), 2))


def test_draws_that_share_the_raters_doubt_are_better(score):
    sure, entry = score("sure")
    doubting, other = score("doubting", share=0.75)
    assert (entry["draws"], other["draws"]) == (1, 16)
    assert entry["raters"] == 4
    assert other["ged"]["value"] < entry["ged"]["value"]
    assert other["ged_unbiased"]["value"] < entry["ged_unbiased"]["value"]
    assert other["matched_iou"]["value"] > entry["matched_iou"]["value"]
    assert other["diversity_draws"]["value"] > entry["diversity_draws"]["value"] == 0
    assert entry["ged_single"]["value"] <= entry["ged"]["value"]
    assert entry["ged_raters"] == other["ged_raters"]
    assert other["ged_raters"]["value"] < other["ged"]["value"]
    found = compare(sure, [doubting], "val", by="ged")["others"][0]
    assert found["difference"]["ged"]["high"] < 0
    assert found["verdict"] == "better"
    assert "ged_raters" not in found["difference"]


def test_stored_figures_are_means_over_images(score):
    run, entry = score("doubting", share=0.5)
    stored = json.loads((run / "metrics.json").read_text())["val"]["per_image"]["sets"]
    assert len(stored) == ITEMS
    column = SETS.index("ged_unbiased")
    known = [row[column] for row in stored if row[column] is not None]
    assert len(known) == ITEMS - 1  # one image has a single rater
    assert entry["ged_unbiased"]["value"] == pytest.approx(np.mean(known), abs=1e-3)


def test_whether_an_image_is_good_enough(score):
    _, entry = score("judging", judge=True)
    assert 0.9 < entry["expected_dice"]["value"] <= 1
    assert entry["image_dice"]["value"] < entry["expected_dice"]["value"]
    assert entry["aurc_excess"]["value"] >= 0
    assert entry["kept_50"]["value"] >= 0
    assert "judge_auroc" in entry
    assert entry["error_auroc"]["value"] == pytest.approx(entry["judge_auroc"]["value"], abs=0.05)
    _, other = score("silent")
    assert "judge_auroc" not in other


def test_one_rater_and_one_draw_make_no_sets(make_run, shapes):
    run = make_run("plain")
    entry = evaluate(run, shapes, "val", resamples=20)
    assert "ged" not in entry
    assert "sets" not in entry["per_image"]
    assert not (run / "pictures" / "draws-val.png").exists()
    assert 0 <= entry["aurc"]["low"] <= entry["aurc"]["value"] <= entry["aurc"]["high"] < 1
    doubting = make_run("doubting", learner=Doubting(classes=3))
    several = evaluate(doubting, shapes, "val", resamples=20)
    assert several["ged"]["value"] > 0
    assert not {"ged_raters", "ged_single", "diversity_raters", "ged_unbiased"} & set(several)
    assert (doubting / "pictures" / "draws-val.png").exists()
    with pytest.raises(SegmintError, match="draws: must be at least 1"):
        evaluate(run, shapes, "val", draws=0)


def test_the_picture_and_the_page_show_the_draws(score, tmp_path):
    run, _ = score("doubting", share=0.75, pictures=True)
    picture = Image.open(run / "pictures" / "draws-val.png")
    assert picture.width > (1 + 4 + 6 + 2) * 24 * 4
    assert np.asarray(picture).std() > 20
    page = write_report(run).read_text()
    assert "Draws and raters" in page
    assert "GED of best single mask" in page
    assert page.count("<img") >= 3


def test_a_damaged_entry_is_named_by_the_page(score):
    run, _ = score("doubting", share=0.75)
    scores = json.loads((run / "metrics.json").read_text())
    del scores["val"]["per_image"]["doubt"]
    (run / "metrics.json").write_text(json.dumps(scores))
    with pytest.raises(SegmintError, match=r"metrics.json: val: damaged .*selective"):
        write_report(run)
