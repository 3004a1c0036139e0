"""List the shapes of Lightning loops, and in numbers what the run must say of each: the table of `docs/loops.md`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from tests.lightning_cases import Batches, Books, SizedStream, Stream, UnsizedBatches, in_batches, loader, samples


@dataclass
class Shape:
    """A training, and in numbers what its books must say.

    Args:
        name: as the docs' table has it.
        data: makes the loader or loaders.
        epochs: how many batches each epoch has that ends.
        ends: the update at the end of each.
        samples: the samples by then.
        updates, batches: all there are.
        trainer: arguments of the `Trainer`.
        module: arguments of `Books`.
        track: arguments of `TrackOutputs`.
        raises: what `fit` raises.
    """

    name: str
    data: Callable[[], Any]
    epochs: tuple[int, ...]
    ends: tuple[int, ...]
    samples: tuple[int, ...]
    updates: int
    batches: int
    trainer: dict[str, Any] = field(default_factory=dict)
    module: dict[str, Any] = field(default_factory=dict)
    track: dict[str, Any] = field(default_factory=dict)
    raises: type[BaseException] | None = None


def _stop(model: Books) -> None:
    if len(model.books) == 9:
        model.trainer.should_stop = True


def _interrupt(model: Books) -> None:
    if len(model.books) == 9:
        raise KeyboardInterrupt


THREE = {"max_epochs": 3}
# fmt: off
SHAPES = [
    Shape("26 samples in batches of 4", loader, (7, 7, 7), (7, 14, 21), (26, 52, 78), 21, 21, THREE),
    *(
        Shape(
            f"26 samples in batches of 4, {n} batches to an update",
            loader,
            (7, 7, 7),
            tuple(-(-7 // n) * k for k in (1, 2, 3)),
            (26, 52, 78),
            -(-7 // n) * 3,
            21,
            THREE | {"accumulate_grad_batches": n},
        )
        for n in (2, 3, 8)
    ),
    Shape("`drop_last`", lambda: loader(drop_last=True), (6, 6, 6), (6, 12, 18), (24, 48, 72), 18, 18, THREE),
    Shape("2 workers", lambda: loader(num_workers=2), (7, 7), (7, 14), (26, 52), 14, 14, {"max_epochs": 2}),
    Shape(
        "a batch sampler",
        lambda: DataLoader(samples(), batch_sampler=BatchSampler(SequentialSampler(samples()), 4, False)),
        (7, 7, 7), (7, 14, 21), (26, 52, 78), 21, 21, THREE,
    ),
    Shape(
        "a sized stream, 2 workers, `drop_last`: 4 batches where `len` says 5",
        lambda: DataLoader(SizedStream(22, 22), batch_size=4, num_workers=2, drop_last=True),
        (4, 4, 4), (4, 8, 12), (16, 32, 48), 12, 12, THREE,
    ),
    Shape(
        "4 batches where `len` says 5, 2 to an update",
        lambda: DataLoader(SizedStream(22, 22), batch_size=4, num_workers=2, drop_last=True),
        (4, 4, 4), (2, 4, 6), (16, 32, 48), 6, 12, THREE | {"accumulate_grad_batches": 2},
    ),
    Shape(
        "4 batches where `len` says 5, 3 to an update: Lightning makes none of the fourth",
        lambda: DataLoader(SizedStream(22, 22), batch_size=4, num_workers=2, drop_last=True),
        (4, 4, 4), (1, 2, 3), (12, 28, 44), 3, 12, THREE | {"accumulate_grad_batches": 3},
    ),
    Shape(
        "a stream without length",
        lambda: DataLoader(Stream(), batch_size=4), (7, 7, 7), (7, 14, 21), (26, 52, 78), 21, 21, THREE,
    ),
    Shape(
        "a stream without length, 2 batches to an update",
        lambda: DataLoader(Stream(), batch_size=4),
        (7, 7, 7), (4, 8, 12), (26, 52, 78), 12, 21, THREE | {"accumulate_grad_batches": 2},
    ),
    Shape(
        "a loader of one's own without length",
        lambda: UnsizedBatches(in_batches()), (7, 7, 7), (7, 14, 21), (26, 52, 78), 21, 21, THREE,
    ),
    Shape(
        "7 batches where `len` says 9",
        lambda: Batches(in_batches(), 9), (7, 7, 7), (7, 14, 21), (26, 52, 78), 21, 21, THREE,
    ),
    Shape(
        "7 batches where `len` says 5",
        lambda: Batches(in_batches(), 5), (5, 5, 5), (5, 10, 15), (20, 40, 60), 15, 15, THREE,
    ),
    Shape(
        "two loaders, a dict: the shorter one starts anew",
        lambda: {"a": loader(), "b": loader(16, 8)},
        (7, 7), (7, 14), (26 + 56, 2 * (26 + 56)), 14, 14, {"max_epochs": 2},
    ),
    Shape(
        "two loaders, a list, to the shorter one's end",
        lambda: CombinedLoader([loader(), loader(16, 8)], "min_size"),
        (2, 2), (2, 4), (24, 48), 4, 4, {"max_epochs": 2},
    ),
    Shape(
        "two loaders, one of them at its end",
        lambda: CombinedLoader({"a": loader(), "b": loader(16, 8)}, "max_size"),
        (7, 7), (7, 14), (42, 84), 14, 14, {"max_epochs": 2},
    ),
    Shape("two optimizers by hand", loader, (7, 7, 7), (7, 14, 21), (26, 52, 78), 21, 21, THREE, {"optimizers": 2}),
    Shape(
        "two optimizers by hand, at every second batch",
        loader, (7, 7, 7), (3, 6, 9), (24, 50, 76), 9, 21, THREE, {"optimizers": 2, "every": 2},
    ),
    Shape(
        "`GradientAccumulationScheduler({0: 2, 1: 3})`",
        loader, (7, 7, 7), (4, 7, 10), (26, 52, 78), 10, 21,
        THREE | {"callbacks": lambda: [GradientAccumulationScheduler({0: 2, 1: 3})]},
    ),
    Shape("`max_steps=10`, in an epoch's middle", loader, (7,), (7,), (26,), 10, 10, {"max_steps": 10}),
    Shape("`max_steps=14`, at an epoch's end", loader, (7, 7), (7, 14), (26, 52), 14, 14, {"max_steps": 14}),
    Shape(
        "`max_steps=6`, 2 batches to an update",
        loader, (7,), (4,), (26,), 6, 11, {"max_steps": 6, "accumulate_grad_batches": 2},
    ),
    Shape(
        "`limit_train_batches=5`",
        loader, (5, 5), (5, 10), (20, 40), 10, 10, {"max_epochs": 2, "limit_train_batches": 5},
    ),
    Shape(
        "`limit_train_batches=0.5`",
        loader, (3, 3), (3, 6), (12, 24), 6, 6, {"max_epochs": 2, "limit_train_batches": 0.5},
    ),
    Shape(
        "`limit_train_batches=3` of a stream",
        lambda: DataLoader(Stream(), batch_size=4), (3, 3), (3, 6), (12, 24), 6, 6, {"max_epochs": 2, "limit_train_batches": 3},
    ),
    Shape("`overfit_batches=2`", loader, (2, 2), (2, 4), (8, 16), 4, 4, {"max_epochs": 2, "overfit_batches": 2}),
    Shape("`trainer.should_stop` at the tenth batch", loader, (7,), (7,), (26,), 10, 10, THREE, {"does": _stop}),
    Shape(
        "`trainer.should_stop` at the tenth batch, with `min_epochs=2`",
        loader, (7, 7), (7, 14), (26, 52), 14, 14, THREE | {"min_epochs": 2}, {"does": _stop},
    ),
    Shape("Ctrl-C at the tenth batch", loader, (7,), (7,), (26,), 9, 9, THREE, {"does": _interrupt}, raises=SystemExit),
    Shape(
        "`on_train_batch_start` returns -1 at the fourth batch",
        loader, (3, 3), (3, 6), (12, 24), 6, 6, {"max_epochs": 2}, {"rest_from": 3},
    ),
    Shape(
        "`training_step` returns None for the second batch",
        loader, (7, 7), (7, 14), (26, 52), 14, 14, {"max_epochs": 2}, {"skips": (1,)},
    ),
]
# fmt: on


def table() -> list[str]:
    """Return the lines of the docs' table."""
    lines = [
        "| shape | epochs: the updates that end them | updates | samples by each epoch's end | batches in each epoch's mean |",
        "|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        rest = shape.batches - sum(shape.epochs)
        means = (*shape.epochs, rest) if rest else shape.epochs
        ends, held, in_means = (", ".join(map(str, each)) for each in (shape.ends, shape.samples, means))
        lines.append(f"| {shape.name} | {len(shape.ends)}: {ends} | {shape.updates} | {held} | {in_means} |")
    return lines
