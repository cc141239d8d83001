import json
import re
from html.parser import HTMLParser

import pytest

from segmint.data.cache import Pixels
from segmint.evaluation.compare import compare
from segmint.evaluation.evaluate import evaluate
from segmint.evaluation.files import write_json
from segmint.evaluation.pairs import describe_pairs
from segmint.evaluation.pictures import write_data_summary
from segmint.evaluation.report import duration, safeguards, write_report
from segmint.types import SegmintError

VOID = {"meta", "img", "br", "link"}


class Checker(HTMLParser):
    """Collects addresses and text, and checks that tags are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.text, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "title"):
            self.text.append(data)


def read(path):
    """The page's text on one line, its addresses and tags; checked to be whole and to need nothing else."""
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    assert all(address.startswith(("data:image/", "#")) for address in checker.addresses)
    assert not {"script", "link", "iframe"} & set(checker.tags)
    assert not re.search(r"url\(|@import", path.read_text(encoding="utf-8"))
    return re.sub(r"\s+", " ", " ".join(checker.text)), checker.addresses


def add_training(run, **summary):
    lines = [
        {
            "step": step,
            "split": split,
            "loss": 1 / step,
            "cross_entropy": 1 / step,
            "kl": 0.5,
            "l2_norm": 3.0,
            "note": "x",
        }
        for step in (10, 20, 30)
        for split in ("train", "val")
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "status": "finished", "steps": 30, "seconds": 200.0, "images_per_second": 13.25, "best_step": 20,
        "labelled": 5, "unlabelled": 3, "synthetic": 0, "parameters": 1234567, "precision": "float32",
        "versions": {"torch": "2.13.0"}, "hardware": "2 cores",
    }  # fmt: skip
    write_json(run / "summary.json", {**values, **summary})
    return run


@pytest.fixture
def story(make_run, data, pairs, tmp_path):
    base = add_training(make_run("base", blind=True, notes=["loss: because <b>."]))
    both = add_training(make_run("both", synthetic=[str(pairs)]))
    for run in (base, both):
        evaluate(run, data, "test", resamples=50)
    compare(base, [both], "test", folder=tmp_path, resamples=200)
    add_training(make_run("vae", method="vae", training={"patience": 3, "ema": 0.0}), status="interrupted")
    describe_pairs(
        pairs, data, size=(32, 24), indices=data.split("train"), embed=lambda image: image[:, :, ::8, ::8].flatten(1)
    )
    write_data_summary(
        Pixels.open(data, (32, 24)), tmp_path, description="One <averaged> brain.", commands=["segmint check DATA"]
    )
    return tmp_path


def test_the_whole_story(story):
    text, addresses = read(write_report(story))
    answer = text.index("Training on pairs from the VAE as well made the segmenter")
    places = [
        text.index(head, answer) for head in ("The data", "Segmentations beside", "Generated pairs", "How it was made")
    ]
    assert places == sorted(places)
    assert "One <averaged> brain." in text
    assert "segmint check DATA" in text
    assert "because <b>." in text
    assert "diversity" in text
    assert "vae was interrupted after 30 steps" in text
    assert "early stopping after 3 validations" in re.sub(r" +", " ", text)
    assert "EMA off" in re.sub(r" +", " ", text)
    assert "train base 3 min 20 s" in text
    assert "torch 2.13.0" in text
    pictures = [address for address in addresses if address.startswith("data:")]
    kinds = [address.split(";")[0] for address in pictures]
    assert kinds.count("data:image/png") == 4  # data, pairs, and two runs' segmentations
    assert (
        kinds.count("data:image/svg+xml") == 8
    )  # two of the comparison, class shares, three runs' curves, twice doubt
    again = (story / "report.html").read_text()
    assert write_report(story).read_text() == again


def test_a_run_alone(make_run, data):
    run = add_training(make_run("alone"))
    evaluate(run, data, "val", resamples=20)
    generated = run / "generated"
    generated.mkdir()
    (generated / "manifest.jsonl").write_text('{"name": "0"}\n')
    text, _ = read(write_report(run))
    assert "reaches a mean IoU of" in text
    assert "3 images of val" in text
    assert "these pairs have not been compared" in text
    assert "kept are the weights of step 20" in text


def test_an_interrupted_run_says_what_is_missing(tmp_path):
    (tmp_path / "log.jsonl").write_text("")
    (tmp_path / "pictures").mkdir()
    text, _ = read(write_report(tmp_path))
    assert "config.yaml is missing" in text
    assert "summary.json is missing" in text
    assert "log.jsonl holds no figures yet" in text
    assert "No segmenter has been evaluated yet" in text
    (tmp_path / "config.yaml").write_text("method: gan\n")
    (tmp_path / "log.jsonl").unlink()
    text, _ = read(write_report(tmp_path))
    assert "log.jsonl is missing: there are no learning curves." in text


def test_samples_of_training_and_a_generated_folder_alone(tmp_path, pairs, make_run):
    text, _ = read(write_report(pairs))
    assert "pairs.json is missing" in text
    run = add_training(make_run("gan", method="gan"))
    (run / "pictures").mkdir()
    (run / "pictures" / "samples-0100.png").write_bytes(b"png")
    text, addresses = read(write_report(run))
    assert "Samples 0100" in text
    assert any(address.startswith("data:image/png") for address in addresses)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", "{", "summary.json: cannot be read as JSON"),
        ("log.jsonl", "{\n{}\n", "log.jsonl: line 1 is not JSON"),
        ("config.yaml", "[", "config.yaml: cannot be read as YAML"),
        ("metrics.json", '{"val": {"miou": 1}}', "metrics.json: val lacks images, note"),
        ("comparison.json", "{}", "comparison.json: lacks split, images"),
        ("data.json", '{"picture": "x.bmp"}', "x.bmp: not a picture"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    (tmp_path / "config.yaml").write_text("method: gan\n")
    (tmp_path / "x.bmp").write_bytes(b"")
    (tmp_path / name).write_text(content)
    with pytest.raises(SegmintError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(SegmintError, match="no run and no pairs here"):
        write_report(tmp_path)
    with pytest.raises(SegmintError, match="no such folder"):
        write_report(tmp_path / "nowhere")


def test_timings_and_commands_that_were_told_come_first(tmp_path):
    (tmp_path / "config.yaml").write_text("method: gan\n")
    told = {
        "timings": [{"step": "make tea", "seconds": 4000}],
        "commands": [{"command": "kettle"}],
        "picture": "no.png",
    }
    write_json(tmp_path / "data.json", told)
    text, _ = read(write_report(tmp_path))
    assert "make tea 1 h 6 min" in text
    assert "kettle" in text
    assert "no.png is missing" in text


def test_durations_and_safeguards_in_words():
    assert [duration(s) for s in (9.52, 200, 3900)] == ["9.5 s", "3 min 20 s", "1 h 5 min"]
    found = dict(safeguards({"training": {"augment": {"flip": True, "scale": [0.5, 2.0]}, "l1": 1e-5}}))
    assert found["augmentation"] == "flip True, scale 0.5, 2"
    assert found["L1"] == "1e-05"
    assert found["early stopping"] == "off"
    assert "dropout" not in found
