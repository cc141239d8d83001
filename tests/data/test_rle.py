from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segmint.data.polygons import Flags
from segmint.data.rle import from_counts, pack_brush, pack_counts, to_counts, unpack_brush, unpack_counts

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12))
PYCOCOTOOLS_DISC = "h`05P16K4M2N2N2O0O2O000O2O00000001N10001N101N2N2N3L5Jc>"


@settings(max_examples=80, deadline=None)
@given(MASKS, st.booleans())
def test_runs_there_and_back(mask: Flags, columns: bool):
    counts = to_counts(mask, columns=columns)
    assert sum(counts) == mask.size
    assert counts[1:] == [count for count in counts[1:] if count > 0]
    assert (from_counts(counts, mask.shape, columns=columns) == mask).all()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 2**31), max_size=30))
def test_packed_runs_there_and_back(counts: list[int]):
    assert unpack_counts(pack_counts(counts)).tolist() == counts


def test_packed_runs_are_those_of_pycocotools():
    disc = (np.indices((40, 50)) - np.array([18, 25])[:, None, None]) ** 2
    mask = disc.sum(0) < 150
    assert pack_counts(to_counts(mask, columns=True)) == PYCOCOTOOLS_DISC
    assert pack_counts([0, 6]) == "06"
    assert unpack_counts("52203").tolist() == [5, 2, 2, 2, 5]


@settings(max_examples=80, deadline=None)
@given(MASKS)
def test_brushes_there_and_back(mask: Flags):
    assert (unpack_brush(pack_brush(mask), mask.shape) == mask).all()


def test_a_long_run_is_split():
    mask = np.ones((200, 300), bool)
    assert (unpack_brush(pack_brush(mask), mask.shape) == mask).all()


def test_a_brush_header_is_that_of_a_real_export():
    header = [2, 1, 233, 240, 57, 27, 255]  # of an image 3332 x 2527
    assert pack_brush(np.zeros((2527, 3332), bool))[:7] == header


def test_values_that_are_not_repeated_are_read():
    # 32 bits: 8 values; 8 bits each; sizes 3 4 8 16; one literal run of 8 values: 0 0 0 255 9 9 9 200
    bits = f"{8:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "0" + "00" + "111"
    bits += "".join(f"{value:08b}" for value in (0, 0, 0, 255, 9, 9, 9, 100))
    code = [int(bits.ljust(-(-len(bits) // 8) * 8, "0")[place : place + 8], 2) for place in range(0, len(bits), 8)]
    assert unpack_brush(code, (1, 2)).tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ([], "not of 2 x 1"),
        ([0, 0, 0, 9, 57, 27, 255], "not of 2 x 1"),
        ([0, 0, 0, 8, 57, 27, 255], "ends too early"),
        ([0, 0, 0, 8, 1, 27, 255], "not of 8 bits"),
        (["a"], "not a list of bytes"),
        ([300], "not a list of bytes"),
        ([0, 0, 0, 8, 57, 27, 255, 255, 255, 255, 255, 255], "does not end where it should"),
    ],
)
def test_broken_brushes_are_refused(code: list[int], complaint: str):
    with pytest.raises(ValueError, match=complaint):
        unpack_brush(code, (1, 2))


@pytest.mark.parametrize("counts", [[3], [-1, 7], ["a"], [10**30], [2, 2, 3], [[1, 2], [3]], None])
def test_broken_runs_are_refused(counts: list[int]):
    with pytest.raises(ValueError, match="runs"):
        from_counts(counts, (2, 3), columns=True)


@pytest.mark.parametrize("text", ["\x01", "o" * 20, "P", "é"])
def test_broken_packed_runs_are_refused(text: str):
    with pytest.raises(ValueError, match="not a compressed"):
        unpack_counts(text)
