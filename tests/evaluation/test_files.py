import json
import math

import numpy as np
import pytest
import torch

from segmint.evaluation.files import plain, read_json, read_lines, write_json
from segmint.types import SegmintError


def test_what_is_not_finite_becomes_null_and_tensors_become_lists(tmp_path):
    values = {"a": math.nan, "b": [1, math.inf], "c": torch.tensor([1.5, math.nan]), "d": np.float64(2), 3: tmp_path}
    path = write_json(tmp_path / "new" / "x.json", values)
    assert json.loads(path.read_text()) == {
        "a": None, "b": [1, None], "c": [1.5, None], "d": 2, "3": str(tmp_path)
    }  # fmt: skip
    assert list(path.parent.iterdir()) == [path]
    assert plain("word") == "word"


def test_damaged_json_is_named_with_its_remedy(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(SegmintError, match=r"x.json: missing; evaluate first"):
        read_json(path, "evaluate first")
    path.write_text("{1")
    with pytest.raises(SegmintError, match=r"x.json: cannot be read as JSON"):
        read_json(path)
    path.write_text("[]")
    with pytest.raises(SegmintError, match=r"x.json: should hold named values, not list"):
        read_json(path)


def test_a_line_cut_off_at_the_end_is_left_out_and_any_other_damage_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    with pytest.raises(SegmintError, match="missing"):
        read_lines(path)
    path.write_text('{"step": 1}\n\n{"step": 2}\n{"st')
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(SegmintError, match=r"log.jsonl: line 2 is not JSON"):
        read_lines(path)
    path.write_text("3\n")
    with pytest.raises(SegmintError, match="line 1 should hold named values"):
        read_lines(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SegmintError, match="cannot be read"):
        read_lines(path)
