"""Two processes are as good as one with the doubled batch; this one is rank 0, and starts the other."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import segmint.training.train as loop
from segmint import ranks
from segmint.data.augment import augment, resolve
from segmint.methods.method import load
from segmint.training import parallel
from segmint.training.checkpoint import load_state, read_log
from segmint.training.run import resume, train
from segmint.training.sampler import Sampler
from segmint.types import IGNORE, Batch, SegmintError

# Adam's step is as large for a gradient that is nothing but rounding as for any other, hence the small learning rates.
USUAL = {"precision": "float32", "validate_every": 3, "steps": 6, "lr": 2e-5, "labelled_fraction": 0.5}
PLAIN = {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16], "dropout": 0.0}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "supervised": ({"augment": {"preset": "strong", "erase": 0.5}}, {**PLAIN, "loss": "cross_entropy+dice"}),
    "gan": (
        {"augment": "weak", "lr_of": {}},
        {"image_discriminator": "convolutional", "width": 8, "warm_start": 2, "loss": "bce", "penalty": 0.1},
    ),
    "vae": ({"augment": "weak"}, {"width": 8, "latent": 4}),
}


def start(shapes: Path, out: Path, name: str, batch_size: int, watcher=None, **changes):
    training, method_settings = CASES[name]
    settings = {**USUAL, **training, "batch_size": batch_size, **changes}
    return train(shapes, method=name, out=out, settings=settings, watcher=watcher, **method_settings)


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def progress(self, step, steps, figures) -> None:
        if step >= self.step:
            self.step = 10**9
            os.kill(os.getpid(), signal.SIGTERM)


def batch_normalised(norm: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients and running statistics of two passes."""
    for _ in range(2):
        x = x.detach().requires_grad_()
        y = norm(x)
    weight = torch.arange(y[0].numel(), dtype=torch.float32).view(y[0].shape).sin()
    (y.square() * weight).mean().backward()
    return {
        "y": y.detach(),
        "x": x.grad,
        "weight": norm.weight.grad,
        "mean": norm.running_mean,
        "var": norm.running_var,
    }


def random_batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(3)
    mask = torch.randint(3, (count, 20, 16), generator=generator)
    return Batch(torch.rand(count, 3, 20, 16, generator=generator) * 2 - 1, mask.masked_fill(mask == 2, IGNORE))


def features() -> torch.Tensor:
    return 30 + 2 * torch.randn(6, 4, 5, 3, generator=torch.Generator().manual_seed(1))


def steps_apart() -> dict[str, Any]:
    """What each of the two finds inside a step."""
    found: dict[str, Any] = {}
    with ranks.together(7):
        found["rand"] = ranks.rand(3, 2)
        found["like"] = ranks.randn_like(torch.zeros(3, 5, 6, 2).permute(0, 3, 1, 2))
        found["dropped"] = nn.functional.dropout(torch.ones(40))
        found["before"] = ranks.before(ranks.rows(torch.arange(6)))
        found["uneven"] = ranks.gather(torch.arange(2 + ranks.rank()))
        found["alone before"] = ranks.before(torch.arange(2 + ranks.rank()))
        found["everywhere"] = [ranks.everywhere(True), ranks.everywhere(ranks.rank() == 0)]
        whole = random_batch(6)
        own = Batch(ranks.rows(whole.image), ranks.rows(whole.mask), ranks.rows(whole.image))
        how = resolve({"preset": "strong", "erase": 0.5, "blur": 0.5})
        found["augmented"] = vars(augment(own, how, torch.Generator().manual_seed(5)))
        x = ranks.rows(torch.arange(1.0, 5)).requires_grad_()
        (slope,) = torch.autograd.grad(ranks.average(x.sum()) ** 3, x, create_graph=True)
        slope.sum().backward()
        found["slope"], found["curvature"] = slope.detach(), x.grad
        norm = nn.BatchNorm2d(4, momentum=0.3)
        nn.init.uniform_(norm.weight)
        parallel.synchronise(norm)
        found["norm"] = batch_normalised(norm, ranks.rows(features()))
        p, q, r = (nn.Parameter(torch.zeros(2)) for _ in range(3))
        p.grad, q.grad = torch.full((2,), float(ranks.rank())), torch.ones(2) if ranks.rank() else None
        parallel.average_gradients([p, q, r])
        found["gradients"] = [p.grad, q.grad, r.grad]
    return found


def agreements() -> dict[str, Any]:
    found: dict[str, Any] = {"first": parallel.first_to_fail()}
    found["told"] = parallel.told(lambda: f"by {ranks.rank()}")
    found["any"] = parallel.any_of([ranks.rank() == 1, False])
    parallel.agree("same", "this is")
    with pytest.raises(SegmintError, match="this is not the same for all processes"):
        parallel.agree(ranks.rank(), "this is")
    with pytest.raises(SegmintError, match="start no more than that"):
        parallel.check_device(torch.device("cuda"))
    return found


def work(rank: int, shapes: Path, out: Path) -> dict[str, Any]:
    """What both processes do."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", f"file://{out / 'store'}", rank=rank, world_size=2, timeout=timedelta(seconds=120))
    loop._Training.REPORT = 1
    found = {"apart": steps_apart(), **agreements()}
    for name in CASES:
        start(shapes, out / name, name, 2)
    stopped = start(shapes, out / "stopped", "vae", 2, StopAt(3))
    found["stopped"] = load_state(stopped.folder)["step"]
    parallel.meet()
    resume(stopped.folder)
    with pytest.raises(SegmintError, match="gmm: is fitted by one process, not by 2"):
        train(shapes, method="gmm", out=out / "gmm")
    with pytest.raises(SegmintError, match="no longer finite"):
        start(shapes, out / "infinite", "vae", 2, lr=1e30)
    if rank:
        loop.any_of = lambda flags: os.kill(os.getpid(), signal.SIGKILL)
        torch.save(found, out / "found1.pt")
    with pytest.raises(SegmintError, match="another process of this training has ended"):
        start(shapes, out / "killed", "vae", 2)
    return found


@pytest.fixture(scope="module")
def two(shapes: Path, tmp_path_factory: pytest.TempPathFactory):
    """The folder of their runs, and what rank 0 and rank 1 found."""
    out = tmp_path_factory.mktemp("two")
    code = (
        "import importlib.util\nfrom pathlib import Path\nimport torch; torch.set_num_threads(1)\n"
        f"spec = importlib.util.spec_from_file_location('parallel_test', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        f"module.work(1, Path({str(shapes)!r}), Path({str(out)!r}))\n"
    )
    log = (out / "rank1.txt").open("w+")
    other = subprocess.Popen([sys.executable, "-c", code], stderr=log)
    report = loop._Training.REPORT
    try:
        found = work(0, shapes, out)
    except SegmintError:
        other.wait(60)
        pytest.fail((out / "rank1.txt").read_text())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        loop._Training.REPORT = report
        other.kill()
        other.wait(60)
        log.close()
    return out, found, torch.load(out / "found1.pt", weights_only=False)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop._Training, "REPORT", 1)


def lines(folder: Path, split: str) -> list[dict[str, float]]:
    left_out = {"seconds", "split", "images_per_second"}
    return [
        {key: value for key, value in line.items() if key not in left_out}
        for line in read_log(folder)
        if line["split"] == split
    ]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one_with_the_doubled_batch(two, shapes: Path, tmp_path: Path, every_step, name: str):
    one = start(shapes, tmp_path / name, name, 4)
    both, single = lines(two[0] / name, "train"), lines(one.folder, "train")
    assert len(both) == len(single) == 6
    for ours, theirs in zip(both, single, strict=True):
        norms = {key: theirs[key] for key in theirs if "gradient_norm" in key}
        assert ours == pytest.approx(theirs | {key: ours[key] for key in norms}, rel=1e-4, abs=1e-5)
        assert {key: ours[key] for key in norms} == pytest.approx(norms, rel=1e-2)
    weights, other = load(two[0] / name).state_dict(), load(one.folder).state_dict()
    apart = torch.cat([(value.float() - other[key].float()).abs().flatten() for key, value in weights.items()])
    assert float(apart.mean()) < 1e-6
    assert float(apart.max()) < 3e-4
    for ours, theirs in zip(lines(two[0] / name, "val"), lines(one.folder, "val"), strict=True):
        assert ours.get("miou") == theirs.get("miou")
    summary = json.loads((two[0] / name / "summary.json").read_text())
    assert (summary["processes"], summary["steps"]) == (2, 6)


def test_a_stop_stops_both_and_resuming_repeats_bit_for_bit(two):
    out, found, other = two
    assert 3 <= found["stopped"] == other["stopped"] < 6
    whole, resumed = load_state(out / "vae"), load_state(out / "stopped")
    for part in ("method", "ema"):
        for key, value in whole[part].items():
            assert torch.equal(value, resumed[part][key]), key


def test_another_number_of_processes_does_not_resume(two):
    with pytest.raises(SegmintError, match="was trained by 2 processes and cannot go on with 1"):
        resume(two[0] / "stopped")


def test_batch_normalisation_is_that_of_the_whole_batch(two):
    _, *found = two
    norm = nn.BatchNorm2d(4, momentum=0.3)
    torch.manual_seed(ranks.mix(7, 0))
    nn.functional.dropout(torch.ones(40))
    nn.init.uniform_(norm.weight)
    plain = batch_normalised(norm, features())
    ours, theirs = (one["apart"]["norm"] for one in found)
    for key in ("y", "x"):
        together = torch.stack([ours[key], theirs[key]], 1).flatten(0, 1)
        scale = 1 if key == "y" else 2  # a process's loss is the mean over its own half
        assert torch.allclose(together, plain[key] * scale, atol=1e-5), key
    assert torch.allclose((ours["weight"] + theirs["weight"]) / 2, plain["weight"], atol=1e-5)
    for key in ("mean", "var"):
        assert torch.equal(ours[key], theirs[key])
        assert torch.allclose(ours[key], plain[key], rtol=1e-5)


def interleaved(found, *keys: str) -> torch.Tensor:
    parts = [one["apart"] for one in found]
    for key in keys:
        parts = [part[key] for part in parts]
    return torch.stack(parts, 1).flatten(0, 1)


def test_random_numbers_are_those_of_the_whole_batch(two):
    _, *found = two
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(interleaved(found, "rand"), torch.rand(6, 2, generator=generator))
    permuted = torch.zeros(6, 5, 6, 2).permute(0, 3, 1, 2)
    assert torch.equal(interleaved(found, "like"), torch.empty_like(permuted).normal_(generator=generator))
    assert not torch.equal(found[0]["apart"]["dropped"], found[1]["apart"]["dropped"])
    whole = random_batch(6)
    how = resolve({"preset": "strong", "erase": 0.5, "blur": 0.5})
    plain = augment(Batch(whole.image, whole.mask, whole.image), how, torch.Generator().manual_seed(5))
    for key, value in vars(plain).items():
        assert torch.allclose(interleaved(found, "augmented", key).float(), value.float(), atol=1e-5), key


def test_what_they_tell_each_other(two):
    _, *found = two
    apart = [one["apart"] for one in found]
    assert interleaved(found, "before").tolist() == [5, 0, 1, 2, 3, 4]
    assert all(one["uneven"].tolist() == [0, 0, 1, 1, 2] for one in apart)
    assert apart[1]["alone before"].tolist() == [2, 0, 1]
    assert all(one["everywhere"] == [True, False] for one in apart)
    assert [one["told"] for one in found] == ["by 0", "by 0"]
    assert [one["any"] for one in found] == [[True, False]] * 2
    assert sorted(one["first"] for one in found) == [False, True]


def test_averages_have_gradients_of_gradients(two):
    # y = (s / 2)^3 of each process, s the sum of all: the slope of both y is 2 * 3 (s/2)^2 / 2, and again so.
    _, *found = two
    for one in found:
        assert torch.allclose(one["apart"]["slope"], torch.full((2,), 75.0))
        assert torch.allclose(one["apart"]["curvature"], torch.full((2,), 60.0))


def test_gradients_are_averaged_and_missing_ones_are_zero(two):
    _, *found = two
    for one in found:
        p, q, r = one["apart"]["gradients"]
        assert p.tolist() == q.tolist() == [0.5, 0.5]
        assert r is None


def test_alone_everything_is_as_without():
    x = torch.rand(3, 4)
    torch.manual_seed(1)
    drawn = [ranks.rand(3, 2), ranks.randn(3, 2), ranks.randn_like(x)]
    torch.manual_seed(1)
    for value in drawn:
        assert torch.equal(value, (torch.rand if value is drawn[0] else torch.randn)(value.shape))
    with ranks.together(5):
        drawn = [ranks.rand(3)]
        assert ranks.alone()
    assert torch.equal(drawn[0], torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert all(f(x) is x for f in (ranks.rows, ranks.average, ranks.gather))
    assert torch.equal(ranks.before(x), x.roll(1, 0))
    assert (ranks.rank(), ranks.world(), ranks.everywhere(False)) == (0, 1, False)
    norm = nn.BatchNorm2d(4)
    parallel.synchronise(norm)
    assert type(norm) is nn.BatchNorm2d
    assert parallel.first_to_fail()
    assert parallel.told(lambda: 3) == 3
    parallel.agree(1, "this is")
    with parallel.in_turn():
        parallel.meet()


def test_batches_of_all_processes_are_made_up_alike():
    values = {"labelled_fraction": 0.5, "synthetic_fraction": 0.5, "whole_epochs": False, "seed": 0}
    lists = (range(5), range(10, 20), range(20, 30))
    sampler = Sampler(*lists, batch_size=5, processes=3, **values)
    choice = sampler.at(2)
    kinds = [["l", "u", "s"][index // 10] for index in choice.indices]
    assert len(kinds) == 15
    assert len({"".join(kinds[rank::3]) for rank in range(3)}) == 1
    double = Sampler(*lists, batch_size=8, **values).at(1)
    assert Sampler(*lists, batch_size=4, processes=2, **values).at(1) == double


def test_without_torchrun_nobody_is_met(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    parallel.join()
    assert not dist.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SegmintError, match=r"cannot meet .* start them with torchrun"):
        parallel.join()
    assert not dist.is_initialized()


def test_torchrun_trains_one_run_and_speaks_once(shapes: Path, tmp_path: Path):
    module = importlib.util.find_spec("torch.distributed.run")
    assert module is not None
    options = ["--steps", "2", "--out", str(tmp_path / "run")]
    options += ["--set", "width=8", "--set", "latent=4", "--set", "training.precision=float32"]
    options += ["--set", "training.batch_size=2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "segmint", "train", str(shapes), "--method", "vae", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished after 2 steps") == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == 2
    assert lines(tmp_path / "run", "train")[-1]["step"] == 2
