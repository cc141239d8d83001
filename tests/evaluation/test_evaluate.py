import json
import shutil

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

from segmint.config import RunSettings, read_run, write_run
from segmint.data.cache import Pixels
from segmint.data.folder import open_folder
from segmint.evaluation.evaluate import evaluate, spread, truth_of
from segmint.evaluation.tables import MEASURES, SETS, expand, read_tables
from segmint.functional import metrics
from segmint.methods.method import Method, build, save
from segmint.training.run import Run
from segmint.types import IGNORE, SegmintError

FIGURES = ("miou", "dice", "accuracy", "boundary_f1", "ece", "brier", "nll")


def test_figures_are_those_of_the_whole_split(make_run, data):
    run = make_run("blind", blind=True)
    entry = evaluate(run, data, "val", batch_size=2, pictures=False)
    method_says, truth = [], []
    pixels = Pixels.open(data, (32, 24))
    for index in data.split("val"):
        image = pixels.batch([index]).image
        method_says.append(Run(run).method.segment(image, None).argmax(1).flatten())
        truth.append(pixels.masks[pixels.rows[index][0]].flatten())
    expected = jaccard_score(np.concatenate(truth), torch.cat(method_says), average="macro")
    assert entry["miou"]["value"] == pytest.approx(expected)
    assert entry["per_class"]["disc"]["iou"]["value"] == entry["per_class"]["square"]["dice"]["value"] == 0
    assert sum(row["share"] for row in entry["per_class"].values()) == pytest.approx(1)
    assert (entry["images"], entry["size"], entry["raters"]) == (3, [32, 24], 1)
    for key in FIGURES:
        assert entry[key]["low"] <= entry[key]["value"] <= entry[key]["high"]


def test_batches_do_not_matter_and_tables_survive_the_file(make_run, data):
    run = make_run("good")
    one = evaluate(run, data, "test", batch_size=1, pictures=False)
    all_at_once = evaluate(run, data, "test", batch_size=8, pictures=False)
    assert one["per_image"] == all_at_once["per_image"]
    stored = json.loads((run / "metrics.json").read_text())["test"]
    tables = read_tables(stored)
    assert tables["confusion"].sum() == 3 * 32 * 24
    assert float(metrics.mean_iou(tables["confusion"].sum(0))) == pytest.approx(one["miou"]["value"])
    assert float(metrics.calibration_error(tables["calibration"].sum(0))) == pytest.approx(
        one["ece"]["value"], abs=1e-5
    )
    with pytest.raises(KeyError):
        read_tables({"classes": ["a"], "per_image": {"names": []}})


def test_other_splits_are_kept_and_a_picture_is_drawn(make_run, shapes):
    run = make_run("good")
    evaluate(run, shapes, "val")
    evaluate(run, shapes, "test", draws=2)
    scores = json.loads((run / "metrics.json").read_text())
    assert list(scores) == ["val", "test"]
    assert (scores["val"]["draws"], scores["test"]["draws"]) == (1, 2)
    picture = Image.open(run / "pictures" / "segmentations-val.png")
    assert picture.width > 5 * 24 * 6
    assert np.asarray(picture).std() > 20
    evaluate(run, shapes, "train", size=(64, 16))
    narrow = Image.open(run / "pictures" / "segmentations-train.png")
    assert narrow.width > narrow.height  # in two halves, side by side
    assert not list(run.rglob("*.tmp"))


def test_a_damaged_metrics_file_is_not_written_over(make_run, shapes):
    run = make_run("good")
    (run / "metrics.json").write_text("{")
    with pytest.raises(SegmintError, match=r"metrics.json: cannot be read .* remove it and evaluate again"):
        evaluate(run, shapes, "val", pictures=False)


def test_a_run_of_the_real_kind(tmp_path, shapes):
    method = build("supervised", classes=3, image_size=(32, 24), encoder_name="plain", encoder_weights=None)
    save(method, tmp_path)
    write_run(RunSettings(method="supervised", data=str(shapes)), tmp_path)
    shutil.copy(shapes / "classes.yaml", tmp_path)
    entry = evaluate(tmp_path, shapes, "val", pictures=False, size=(16, 16))
    assert entry["size"] == [16, 16]
    assert entry["method"] == "supervised"


class Silent(Method):
    def __init__(self, *, classes=3, in_channels=3, image_size=(32, 24)):
        super().__init__()

    def generate(self, seeds, mask=None, previous=None, image=None):
        raise AssertionError


class Grey(Method):
    def __init__(self, *, classes=3, in_channels=1, image_size=(32, 24)):
        super().__init__()

    def segment(self, image, seeds):
        raise AssertionError


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Silent(classes=3), "does not segment, it only generates"),
        (Grey(classes=3), "images have 3 channels, but .* was trained with 1"),
        (Grey(classes=7), "has 3 classes, but .* was trained with 7"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(make_run, shapes, method, message):
    with pytest.raises(SegmintError, match=message):
        evaluate(make_run("odd", learner=method), shapes)


def test_a_split_without_masks_is_refused(make_run, shapes, tmp_path):
    bare = tmp_path / "bare"
    for name in ("images", "splits"):
        (bare / name).mkdir(parents=True)
        for path in (shapes / name).iterdir():
            (bare / name / path.name).write_bytes(path.read_bytes())
    (bare / "classes.yaml").write_bytes((shapes / "classes.yaml").read_bytes())
    with pytest.raises(SegmintError, match="none of the 3 images of split 'val' has a mask"):
        evaluate(make_run("good"), bare)


def test_several_raters_are_scored_by_their_majority(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks" / "a").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "images" / "a.png")
    for rater, value in enumerate((0, 1, 1)):
        mask = np.full((4, 4), value, np.uint8)
        mask[0] = (0, 1, IGNORE)[rater]
        Image.fromarray(mask).save(tmp_path / "masks" / "a" / f"{rater}.png")
    (tmp_path / "classes.yaml").write_text("classes: [{id: 0, name: tissue}, {id: 1, name: nodule}]\n")
    pixels = Pixels.open(open_folder(tmp_path), (4, 4))
    truth = truth_of(pixels, 0)
    assert truth[0].tolist() == [0] * 4
    assert truth[1:].unique().tolist() == [1]


def test_spread_goes_from_best_to_worst():
    figures = torch.tensor([0.1, torch.nan, 0.9, 0.5, 0.7])
    assert spread(figures, 3) == [2, 3, 0] or spread(figures, 3) == [2, 4, 0]
    assert spread(figures, 9) == [2, 4, 3, 0]
    assert spread(figures, 1) == [2]


def test_classes_of_other_names_or_order_are_refused(make_run, shapes, tmp_path):
    run, data = make_run("good"), shutil.copytree(shapes, tmp_path / "data")
    names = open_folder(data).classes.names
    text = (data / "classes.yaml").read_text()
    (data / "classes.yaml").write_text(
        text.replace(names[1], "new").replace(names[2], names[1]).replace("new", names[2])
    )
    with pytest.raises(SegmintError, match=rf"its classes are {names[0]}, {names[2]}, .* but .* was trained with"):
        evaluate(run, data, "val")


def test_deep_images_are_read_as_those_trained_on(make_run, shapes, tmp_path):
    run, data = make_run("good"), shutil.copytree(shapes, tmp_path / "data")
    usual = evaluate(run, data, "val", pictures=False)
    for path in (data / "images").rglob("*.png"):
        path.write_bytes(imagecodecs.png_encode(np.asarray(Image.open(path)).astype(np.uint16) * 257))
    with pytest.raises(SegmintError, match=r"\d+% of its values do not fit into the 8 bits"):
        evaluate(run, data, "val")
    settings = read_run(run).model_copy(update={"depth": 16})
    write_run(settings, run)
    assert evaluate(run, data, "val", pictures=False)["miou"] == usual["miou"]


def test_a_split_without_a_known_pixel_is_told(make_run, shapes, tmp_path):
    run, data = make_run("good"), shutil.copytree(shapes, tmp_path / "data")
    for item in (opened := open_folder(data)).split("val"):
        for path in opened.items[item].masks:
            Image.fromarray(np.full_like(np.asarray(Image.open(path)), IGNORE)).save(path)
    with pytest.raises(SegmintError, match="no pixel of the masks of split 'val' is known; label some"):
        evaluate(run, data, "val")


def test_draws_are_as_diverse_as_raters_where_few_images_have_several():
    rows = torch.full((10, len(SETS)), torch.nan)
    draws, raters = SETS.index("diversity_draws"), SETS.index("diversity_raters")
    rows[:, draws], rows[:2, draws], rows[:2, raters] = 0, 0.4, 0.4
    assert float(MEASURES["diversity_ratio"].of(expand({"sets": rows})["sets"].sum(0))) == pytest.approx(1)
    rows[:2, raters] = torch.nan
    assert float(MEASURES["diversity_draws"].of(expand({"sets": rows})["sets"].sum(0))) == pytest.approx(0.08)
