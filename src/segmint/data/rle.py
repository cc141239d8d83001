"""Run-length codes of masks: COCO's (column by column), CVAT's (row by row) and Label Studio's (bits)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from segmint.data.polygons import Flags, Size

Counts = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_BITS = (3, 4, 8, 16)
"""Label Studio writes each run's length in one of these numbers of bits."""
_CHANNELS = 4
"""Its masks have red, green, blue and opacity; the last one counts."""


def from_counts(counts: Sequence[int] | Counts, size: Size, *, columns: bool) -> Flags:
    """A mask bool [H, W] from the lengths of its runs, the first of which is outside.

    Args:
        counts: non-negative, H * W in all.
        size: height and width.
        columns: runs go down the columns (COCO), not along the rows (CVAT).

    Raises:
        ValueError: the counts are not such numbers.
    """
    try:
        runs = np.asarray(counts, np.int64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("the runs are not whole numbers") from error
    height, width = size
    if (runs < 0).any() or (runs > height * width).any() or int(runs.sum()) != height * width:
        raise ValueError(f"the runs do not add up to {width} x {height} pixels")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T if columns else flat.reshape(height, width)


def to_counts(flags: Flags, *, columns: bool) -> list[int]:
    """The lengths of the runs of a mask bool [H, W], the first of which is outside (0 if there is none)."""
    flat = (flags.T if columns else flags).reshape(-1)
    changes = np.nonzero(np.diff(flat))[0] + 1
    lengths = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def unpack_counts(text: str) -> Counts:
    """The runs of COCO's compressed code: signed numbers of 5 bits a letter, differences from the last but one.

    Raises:
        ValueError: it is no such code.
    """
    letters = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if (letters < 0).any() or (letters > 63).any() or (len(letters) and letters[-1] & 32):
        raise ValueError("not a compressed run-length code")
    ends = np.nonzero(letters & 32 == 0)[0]
    begins = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
    lengths = ends - begins + 1
    if (lengths > 10).any():
        raise ValueError("not a compressed run-length code")
    shifts = 5 * (np.arange(len(letters)) - np.repeat(begins, lengths))
    values: Counts = np.add.reduceat((letters & 31) << shifts, begins) if len(ends) else np.zeros(0, np.int64)
    values = np.where(letters[ends] & 16, values - (1 << 5 * lengths), values)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def pack_counts(counts: Sequence[int]) -> str:
    """COCO's compressed code of runs; see `unpack_counts`."""
    letters = bytearray()
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            low, value = value & 31, value >> 5
            last = value == (-1 if low & 16 else 0)
            letters.append(48 + low + (0 if last else 32))
            if last:
                break
    return letters.decode("ascii")


def unpack_brush(code: Sequence[int] | Bytes, size: Size) -> Flags:
    """A mask bool [H, W] from Label Studio's brush code: bytes that hold the opacity of H x W RGBA pixels.

    The bits are: 32 for the number of values; 5 for a value's bits less 1; 4 for each of four sizes of lengths, less 1;
    then for each run 1 (repeated or not), 2 (which size), the length less 1, and the value once or each of them.

    Raises:
        ValueError: it is no such code, or it is of another size.
    """
    try:
        bits = np.unpackbits(np.array(code, np.uint8))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("not a list of bytes") from error
    text = (bits + 48).tobytes()
    total = size[0] * size[1] * _CHANNELS
    if len(text) < 53 or int(text[:32], 2) != total:
        raise ValueError(f"it is not of {size[1]} x {size[0]} pixels")
    if int(text[32:37], 2) != 7:
        raise ValueError("its values are not of 8 bits")
    sizes = [int(text[place : place + 4], 2) + 1 for place in range(37, 53, 4)]
    values = np.empty(total, np.uint8)
    place, done = 53, 0
    while done < total:
        wide = sizes[int(text[place + 1 : place + 3] or b"0", 2)]
        start = place + 3 + wide
        if start + 8 > len(text):
            raise ValueError("it ends too early")
        count = int(text[place + 3 : start], 2) + 1
        repeated = text[place] == 49
        place = start + (8 if repeated else 8 * count)
        if done + count > total or place > len(text):
            raise ValueError("it does not end where it should")
        values[done : done + count] = np.packbits(bits[start:place])
        done += count
    flags: Flags = values[_CHANNELS - 1 :: _CHANNELS].reshape(size) > 127
    return flags


def pack_brush(flags: Flags) -> list[int]:
    """Label Studio's brush code of a mask bool [H, W]; see `unpack_brush`."""
    pieces = [f"{flags.size * _CHANNELS:032b}", f"{7:05b}", *(f"{bits - 1:04b}" for bits in _BITS)]
    for index, count in enumerate(to_counts(flags, columns=False)):
        value, left = "11111111" if index % 2 else "00000000", count * _CHANNELS
        while left:
            run = min(left, 1 << _BITS[-1])
            which = next(which for which, bits in enumerate(_BITS) if run <= 1 << bits)
            pieces.append(f"1{which:02b}{run - 1:0{_BITS[which]}b}{value}")
            left -= run
    text = "".join(pieces)
    text += "0" * (-len(text) % 8)
    return np.packbits(np.frombuffer(text.encode("ascii"), np.uint8) - 48).tolist()
