import pytest
import torch

from segmint.seeds import Seeds, mix
from segmint.types import IGNORE, Batch, Prediction, is_memory


def batch(count: int = 3) -> Batch:
    mask = torch.zeros(count, 4, 5, dtype=torch.int64)
    mask[1] = IGNORE
    return Batch(torch.rand(count, 3, 4, 5), mask)


def test_a_batch_knows_which_items_are_labelled():
    assert batch().labelled.tolist() == [True, False, True]


def test_a_batch_can_be_indexed_moved_and_joined():
    b = batch()
    assert len(b[[0, 2]]) == 2
    assert b[1:].mask.shape == (2, 4, 5)
    assert len(Batch.cat([b, b.to("cpu")])) == 6
    with_previous = Batch(b.image, b.mask, b.image)
    assert Batch.cat([with_previous, with_previous]).previous.shape == (6, 3, 4, 5)
    assert Batch.cat([with_previous, b]).previous is None
    assert with_previous[b.labelled].to("cpu").previous.shape[0] == 2


def test_a_batch_cannot_be_changed():
    with pytest.raises(AttributeError):
        batch().image = torch.zeros(1)


def test_seeds_depend_on_nothing_but_themselves():
    alone = Seeds([7]).randn(2, 3)
    together = Seeds.range(5, start=5)
    assert torch.equal(together.randn(2, 3)[2], alone[0])
    assert len(together) == 5


def test_seeds_continue_fork_and_slice():
    seeds = Seeds.range(4)
    first, second = seeds.randn(3), seeds.randn(3)
    assert not torch.equal(first, second)
    assert torch.equal(seeds.fork("draw", 1).rand(3)[1], Seeds([1]).fork("draw", 1).rand(3)[0])
    assert not torch.equal(seeds.fork("a").rand(3), seeds.fork("b").rand(3))
    assert torch.equal(seeds[2:].integers(10, 4), Seeds([2, 3]).integers(10, 4))
    assert 0 <= int(Seeds.range(20).integers(3).max()) < 3


def test_neighbouring_seeds_are_unrelated():
    numbers = Seeds.range(2000).randn(1)[:, 0]
    assert abs(float(numbers.mean())) < 0.1
    assert abs(float(torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1])) < 0.1


def test_mix_separates_its_parts():
    assert mix(1, 23) != mix(12, 3)
    assert 0 <= mix("x") < 2**63


def test_a_prediction_paints_its_overlay():
    labels = torch.tensor([[0, 1]], dtype=torch.uint8)
    grey = torch.full((1, 2, 1), 100, dtype=torch.uint8)
    zeros = torch.zeros(1, 2)
    p = Prediction(
        labels=labels,
        probabilities=torch.zeros(2, 1, 2),
        uncertainty=zeros,
        aleatoric=zeros,
        epistemic=None,
        errors=None,
        expected_dice=1.0,
        draws=labels[None],
        alternatives=(),
        image=grey,
        names=("a", "b"),
        colors=((0, 0, 0), (200, 0, 0)),
    )
    picture = p.overlay(0.5)
    assert picture.size == (2, 1)
    assert picture.getpixel((0, 0)) == (50, 50, 50)
    assert picture.getpixel((1, 0)) == (150, 50, 50)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Failed to allocate memory for requested buffer of size 8"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("required rank 4 tensor to use channels_last memory format"), False),
        (RuntimeError("the written-to tensor refer to a single memory location"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_too_little_memory_is_told_from_other_talk_of_memory(error: Exception, full: bool):
    assert is_memory(error) == full
