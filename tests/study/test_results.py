import os
from pathlib import Path

import pytest

from segmint.study.results import FILE, Result, append_result, read_results
from segmint.types import SegmintError


def result(seed: int = 0, **changes) -> Result:
    values = {"budget": 30, "seed": seed, "status": "done", "curve": [(2, 0.5)], "scores": {"miou": 0.5}}
    return Result("supervised", **(values | changes))


def test_what_is_appended_is_read_again(tmp_path: Path):
    assert read_results(tmp_path) == []
    rows = [result(0), result(1, budget=None), result(2, status="failed", reason="a loss is no longer finite")]
    for row in rows:
        append_result(tmp_path, row)
    assert read_results(tmp_path) == rows


def test_the_last_result_of_a_trial_counts(tmp_path: Path):
    for row in (result(0, status="failed", reason="killed"), result(1), result(0)):
        append_result(tmp_path, row)
    assert read_results(tmp_path) == [result(0), result(1)]


@pytest.mark.parametrize("cut", [1, 20, 80])
def test_a_torn_last_line_is_left_out_and_written_again(tmp_path: Path, cut: int):
    append_result(tmp_path, result(0))
    append_result(tmp_path, result(1))
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_results(tmp_path) == [result(0)]
    append_result(tmp_path, result(1))
    assert read_results(tmp_path) == [result(0), result(1)]
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("line", ["nonsense", '{"strategy": "x"}', "[]", '{"strategy": 1, "curve": 3}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str):
    (tmp_path / FILE).write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(SegmintError, match="line 1 is no result"):
        read_results(tmp_path)


def test_an_unknown_status_is_refused_and_unknown_keys_are_not(tmp_path: Path):
    path = tmp_path / FILE
    path.write_text('{"strategy": "a", "budget": 1, "seed": 0, "status": "done", "later": 1}\n', encoding="utf-8")
    assert read_results(tmp_path)[0].status == "done"
    path.write_text('{"strategy": "a", "budget": 1, "seed": 0, "status": "well"}\n', encoding="utf-8")
    with pytest.raises(SegmintError, match="'well' is not one of"):
        read_results(tmp_path)


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    append_result(tmp_path, result(0))
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:10]))
    with pytest.raises(SegmintError, match="disk is full"):
        append_result(tmp_path, result(1))
    monkeypatch.undo()
    assert read_results(tmp_path) == [result(0)]
    append_result(tmp_path, result(1))
    assert read_results(tmp_path) == [result(0), result(1)]
