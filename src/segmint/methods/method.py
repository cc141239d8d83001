"""The contract of a method, and how methods are built, saved and loaded."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, get_type_hints

import safetensors.torch
import torch
from torch import Tensor, nn

from segmint.config import typed
from segmint.seeds import Seeds
from segmint.types import Batch, SegmintError, is_memory, reason

M = TypeVar("M", bound="Method")


_REFUSALS = {
    "mask": "makes its own masks and cannot paint given ones",
    "previous": "makes single images and cannot follow a frame",
    "image": "makes new images and cannot paint over a photograph",
}


class Optimizers(Protocol):
    """What a method's `step` is given: one optimiser per part."""

    def minimize(self, part: str, loss: Tensor) -> None:
        """Move the parameters of `part`, and no others, down the gradient of the scalar `loss`."""
        ...


DISAGREE = 0.1
"""Raters disagree from this mean distance (1 - IoU) of two of their masks on: less is mostly the outline's width."""


@dataclass(frozen=True)
class Hardware:
    """What a training runs on.

    Attributes:
        cores: processor cores.
        gpu: name of the CUDA device; empty where it trains on the processor.
        memory: of that device, else of the machine, in GiB; infinite where that is not known.
    """

    cores: int = 1
    gpu: str = ""
    memory: float = math.inf


@dataclass(frozen=True)
class Facts:
    """What a method may know of its training before it is built.

    Attributes:
        classes: K, the number of classes.
        channels: C of the images.
        size: height and width of the training images, in pixels.
        shares: the share of each class among the labelled training pixels, K numbers that sum to one.
        labelled: number of labelled training images; `unlabelled`: of unlabelled ones.
        steps: how many optimisation steps the training is to take; `batch_size`: images in each.
        raters: the most masks that a labelled image has.
        disagreement: mean distance (1 - IoU) of two raters' masks of an image, 0..1.
        hardware: what it runs on.
    """

    classes: int
    channels: int
    size: tuple[int, int]
    shares: tuple[float, ...]
    labelled: int
    unlabelled: int
    steps: int
    batch_size: int = 8
    raters: int = 1
    disagreement: float = 0.0
    hardware: Hardware = Hardware()

    @property
    def alike(self) -> bool:
        """Whether the masks that an image has, if several, are much alike."""
        return self.raters < 2 or self.disagreement < DISAGREE

    @property
    def agreed(self) -> str:
        """What speaks against a method that learns how raters differ; empty where they do."""
        if self.raters < 2:
            return "learns how raters differ, and each image has only one"
        if self.alike:
            return (
                f"learns how raters differ, and here they agree: {self.disagreement:.2f} apart, {DISAGREE} would matter"
            )
        return ""


@dataclass(frozen=True)
class Suit:
    """How a method judges its own prospects on some data; see `Method.suits`.

    Attributes:
        score: 0: it is not to be picked; 1: what masks alone promise, which is sound anywhere; above: it promises more
            here; between 0 and 1: it works, and promises less. The highest is picked. Of methods that prepare
            others, the highest above 0 comes first.
        why: what speaks for or against it here, in plain words: the end of a sentence that starts with its name.
        share: of the steps and minutes, 0..1, for a method that prepares others.
    """

    score: float
    why: str
    share: float = 0.5


class Method(nn.Module):
    """One learner. Its keyword-only constructor is its whole configuration, kept in `config`.

    A method overrides `segment`, `generate` or both (neither if it only `prepares`), and one of `loss` (one optimiser)
    and `step` (anything else).
    Every constructor takes `classes`, `in_channels` and `image_size`.

    Class attributes:
        defaults: values of the training settings that differ from those of `segmint.config.TrainSettings`.
        uses_unlabelled: whether unlabelled images teach it anything.
        whole_epochs: each epoch visits every image exactly once (for EM) instead of sampling endlessly.
        conditions: what `generate` can be given beside seeds, of "mask", "previous" and "image".
        needs_mask: whether `generate` cannot do without a mask.
        prepares: whether it is trained for its weights alone, from which others start (`--init`).
        draws_differ: whether `segment` is random: it draws one of the masks that the image allows.
        monitor: the validation figure that early stopping watches, and whether "max" or "min" is best; None: the
            last weights are kept.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    uses_unlabelled: ClassVar[bool] = False
    whole_epochs: ClassVar[bool] = False
    conditions: ClassVar[frozenset[str]] = frozenset()
    needs_mask: ClassVar[bool] = False
    prepares: ClassVar[bool] = False
    draws_differ: ClassVar[bool] = False
    monitor: ClassVar[tuple[str, str] | None] = ("miou", "max")

    config: dict[str, Any]

    def __new__(cls: type[M], **config: Any) -> M:
        """Keep the constructor's arguments, defaults included, in `config`."""
        method = super().__new__(cls)
        if not config:  # copy and pickle make the object first and fill in its attributes afterwards
            return method
        bound = inspect.signature(cls.__init__).bind(method, **config)
        bound.apply_defaults()
        values = {key: value for key, value in bound.arguments.items() if key != "self"}
        object.__setattr__(method, "config", values)
        return method

    @classmethod
    def adapt(cls, settings: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """Settle what depends on the data before the method is built.

        Args:
            settings: constructor arguments as the user gave them.
            facts: what is known of the training data.

        Returns:
            The constructor arguments with every "auto" resolved, and sentences that say what was chosen and why.
        """
        return dict(settings), []

    @classmethod
    def suits(cls, facts: Facts) -> Suit | None:
        """Whether to train with this method where the user names none; None: only where it is named.

        Numbers that decide stand at the top of the method's file, with their reasons. More steps never lower a score.

        Args:
            facts: what is known of the training, whatever of the data this method would use; `steps` are all that there
                are, of which a method that prepares others gets a share.
        """
        return None

    def parts(self) -> dict[str, nn.Module]:
        """The modules that are optimised separately, by name."""
        return {"model": self}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar terms to report; the one called "loss" is minimised."""
        raise SegmintError(f"{self.name} has neither a loss nor a step of its own")

    def step(self, batch: Batch, optimizers: Optimizers) -> dict[str, Tensor]:
        """One optimisation step; returns scalar terms to report.

        Where several processes train together, each has some rows of the batch; `segmint.ranks` says what that asks of
        random numbers, of means over the batch, and of decisions that depend on it.
        """
        terms = self.loss(batch)
        optimizers.minimize("model", terms["loss"])
        return {key: value.detach() for key, value in terms.items()}

    def starting_weights(self) -> dict[str, Tensor]:
        """The tensors that others take over which start from this method (`--init`), by name."""
        return self.state_dict()

    def finish_epoch(self) -> dict[str, float]:
        """Called after each pass over the data; returns figures to report. EM updates itself here."""
        return {}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar terms averaged over the validation images (mIoU is added for methods that segment)."""
        return {}

    def segment(self, image: Tensor, seeds: Seeds) -> Tensor:
        """One draw of a mask for each image.

        Args:
            image: float32 [B, C, H, W] in [-1, 1]; any H and W.
            seeds: one per image; methods without randomness leave them alone.

        Returns:
            Logits, float32 [B, K, H, W].
        """
        raise SegmintError(f"{self.name} does not segment")

    def draws(self, image: Tensor, seeds: Seeds, count: int) -> Iterator[Tensor]:
        """Several draws of a mask for each image, what they share being computed once.

        Args:
            image: float32 [B, C, H, W] in [-1, 1]; any H and W.
            seeds: one per image; draw s is that of `segment(image, seeds.fork("draw", s))`, up to rounding.
            count: how many draws.

        Yields:
            Logits, float32 [B, K, H, W], draw by draw; the same each time where draws do not differ.
        """
        if self.draws_differ:
            yield from (self.segment(image, seeds.fork("draw", number)) for number in range(count))
        else:
            yield from [self.segment(image, seeds.fork("draw", 0))] * count

    def errors(self, image: Tensor, logits: Tensor) -> Tensor | None:
        """The probability of each pixel's most probable class being wrong, where the method has learnt to judge it.

        Args:
            image: float32 [B, C, H, W] in [-1, 1].
            logits: float32 [B, K, H, W], what the method said of these images.

        Returns:
            float32 [B, H, W] in 0..1, or None: this method has no judge of its own beside its probabilities.
        """
        return None

    def generate(
        self,
        seeds: Seeds,
        mask: Tensor | None = None,
        previous: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Batch:
        """Make one image-and-mask pair per seed, of the size it was trained on.

        Args:
            seeds: one per pair.
            mask: int64 [B, H, W], to be painted; None to make masks as well.
            previous: float32 [B, C, H, W], the frame before; None where there is none.
            image: float32 [B, C, H, W], the photograph that `mask` belongs to, to be painted over; None for a new one.

        Raises:
            SegmintError: this method cannot start from one of them; see `conditions`.
        """
        raise SegmintError(f"{self.name} does not generate")

    @classmethod
    def refuse(cls, **given: Tensor | None) -> None:
        """Raise a SegmintError if `generate` was given what is not among the `conditions`."""
        for key, value in given.items():
            if value is not None and key not in cls.conditions:
                name = cls.__module__.rpartition(".")[2]
                able = [other for other in names() if key in find(other).conditions]
                raise SegmintError(f"{name}: {_REFUSALS[key]}; {' and '.join(able) or 'no method'} can")

    @property
    def name(self) -> str:
        """The file name of the method, by which `build` finds it."""
        return type(self).__module__.rpartition(".")[2]

    @classmethod
    def settings(cls) -> frozenset[str]:
        """The names of its settings: the constructor's arguments."""
        return frozenset(inspect.signature(cls.__init__).parameters) - {"self"}

    @classmethod
    def capabilities(cls) -> frozenset[str]:
        """Which of "segment" and "generate" this method offers."""
        return frozenset(job for job in ("segment", "generate") if getattr(cls, job) is not getattr(Method, job))


def names() -> list[str]:
    """The names of all methods: the modules beside this one."""
    import segmint.methods

    return sorted(module.name for module in pkgutil.iter_modules(segmint.methods.__path__) if module.name != "method")


def find(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        SegmintError: there is no such method.
    """
    if name not in names():
        raise SegmintError(f"method: there is no {name!r}; choose one of {', '.join(names())}")
    module = importlib.import_module(f"segmint.methods.{name}")
    for value in vars(module).values():
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__:
            return value
    raise SegmintError(f"{module.__file__} defines no subclass of Method; add one")


def build(name: str, **config: Any) -> Method:
    """Make a method from its name and its constructor's arguments.

    Raises:
        SegmintError: unknown method, unknown or missing argument, or a value the method refuses.
    """
    cls = find(name)
    known = [key for key in inspect.signature(cls.__init__).parameters if key != "self"]
    for key in config:
        if key not in known:
            raise SegmintError(f"{name}.{key}: there is no such setting; {name} has {', '.join(known)}")
    config = typed(get_type_hints(cls.__init__), config, name)
    try:
        return cls(**config)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        if is_memory(error):
            raise
        given = ", ".join(key for key in config if key not in ("classes", "in_channels", "image_size"))
        raise SegmintError(f"{name}: {reason(error)}; correct one of {given or 'its settings'}") from error


def save(method: Method, folder: Path) -> None:
    """Write `model.safetensors` and `method.json`, each to a temporary name and then renamed.

    Raises:
        SegmintError: they could not be written (disk full, no permission); what was there before is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().contiguous().cpu() for key, value in method.state_dict().items()}
    config = {key: None if isinstance(value, nn.Module) else value for key, value in method.config.items()}
    external = [key for key, value in method.config.items() if isinstance(value, nn.Module)]
    text = json.dumps({"method": method.name, "config": config, "modules": external}, indent=2)
    weights, description = folder / "model.safetensors.tmp", folder / "method.json.tmp"
    try:
        safetensors.torch.save_file(tensors, weights)
        description.write_text(text, encoding="utf-8")
        weights.replace(folder / "model.safetensors")
        description.replace(folder / "method.json")
    except (OSError, safetensors.SafetensorError) as error:
        weights.unlink(missing_ok=True)
        description.unlink(missing_ok=True)
        raise SegmintError(
            f"{folder}: the model cannot be written ({reason(error)}); make room, then resume"
        ) from error


def load(folder: str | Path, changes: Mapping[str, Any] | None = None, **modules: nn.Module) -> Method:
    """Read a method from a run folder, in evaluation mode on the CPU.

    Args:
        folder: a folder that `save` or `segmint train` wrote.
        changes: settings to use instead of the stored ones; the weights must still fit.
        modules: networks of the user's own that the method was built with, e.g. `network=MyNet()`.

    Raises:
        SegmintError: the folder holds no method, or its files are damaged or do not fit each other.
    """
    folder = Path(folder)
    path = folder / "method.json"
    if not path.is_file():
        raise SegmintError(f"{folder}: no method.json here; name the folder of a finished training run")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        name, config, external = stored["method"], stored["config"], stored.get("modules", [])
    except (ValueError, KeyError, TypeError) as error:
        raise SegmintError(f"{path}: not a method description ({error}); train again or restore the file") from error
    for key in external:
        if key not in modules:
            raise SegmintError(f"{folder}: was trained with your own module as {key!r}; pass load(..., {key}=module)")
    if isinstance(config.get("image_size"), list):
        config["image_size"] = tuple(config["image_size"])
    method = build(name, **{**config, **(changes or {}), **modules})
    weights = folder / "model.safetensors"
    try:
        method.load_state_dict(safetensors.torch.load_file(weights))
    except FileNotFoundError as error:
        raise SegmintError(f"{weights}: missing; the training has not saved a model yet") from error
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        raise SegmintError(f"{weights}: cannot be read ({reason(error)}); restore it or train again") from error
    return method.eval()


def device_of(method: nn.Module) -> torch.device:
    """The device that a method's weights are on."""
    tensors = chain(method.parameters(), method.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
