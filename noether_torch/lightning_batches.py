"""Say how many samples a Lightning batch held, and what a step returned for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from operator import index
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, default_collate

from noether_core.errors import ScheduleError
from noether_core.schedule import require_positive

BatchSize = int | Callable[[Any], int]


def checked_batch_size(batch_size: BatchSize | None) -> BatchSize | None:
    """Return `TrackOutputs`'s argument of this name; raises `ScheduleError` if it is none."""
    if batch_size is not None and not callable(batch_size):
        require_positive("TrackOutputs", batch_size=batch_size)
    return batch_size


class SampleCount:
    """Count the samples of each batch.

    A batch's samples are the first dimension that all its arrays have in common; those of several loaders' batches add up.
    Of several processes each has such a batch, and all must count alike, though none knows the others' batches: one counts
    as many samples for each process as it has itself where the loaders are bound to give all the same, which those with
    PyTorch's `DistributedSampler` and collate function are, and elsewhere as many as the loaders' batch sizes say.

    Args:
        batch_size: how many a batch has, or a function of the batch that says so; None: as above.
        processes: how many processes have a batch of their own each.
        counts: what counts samples, so that a batch of which they cannot be known is an error; None: nothing.
    """

    def __init__(self, batch_size: BatchSize | None, processes: int, counts: str | None) -> None:
        self._batch_size = batch_size
        self._processes = processes
        self._counts = counts

    def of_batch(self, batch: Any, loaders: Any) -> int | None:
        """Return how many samples a batch had; None where that cannot be known and nothing counts them.

        Args:
            batch: as `training_step` got it.
            loaders: the loader it came from, or a dict or list of loaders.

        Raises:
            ScheduleError: where it cannot be known and something counts them, or `batch_size` gives no such number.
        """
        size: int | str
        if isinstance(self._batch_size, int):
            size = self._batch_size
        elif self._processes > 1 and (callable(self._batch_size) or not _are_alike(loaders)):
            size = _size_of_loaders(batch, loaders, is_told=callable(self._batch_size) and self._counts is not None)
        else:
            size = _size(batch, loaders) if self._batch_size is None else _as_size(self._batch_size(batch))
        if isinstance(size, int):
            return size * self._processes
        if self._counts is not None:
            raise ScheduleError(
                f"{self._counts} counts samples, but how many this batch held is not known: {size}; give"
                " TrackOutputs(batch_size=...), a number or a function that returns it for a batch"
            )
        return None

    def of_earlier(self, batches: int, loaders: Any) -> int:
        """Return how many samples so many batches had that came before those that are counted here.

        Raises:
            ScheduleError: where that cannot be known and something counts samples.
        """
        size = self._batch_size if isinstance(self._batch_size, int) else getattr(loaders, "batch_size", None)
        if isinstance(size, int) or not batches:
            return batches * int(size or 0) * self._processes
        if self._counts is not None:
            raise ScheduleError(
                f"{self._counts} counts samples, but how many the {batches} batches of the training before had is not known;"
                " give TrackOutputs(batch_size=...), the number that each had, or resume from a checkpoint that a"
                " trainer with this callback saved"
            )
        return 0


def _are_alike(loaders: Any) -> bool:
    """Tell whether loaders give all processes batches of the same sizes."""
    if isinstance(loaders, Mapping | list | tuple):
        return all(map(_are_alike, loaders.values() if isinstance(loaders, Mapping) else loaders))
    return (
        isinstance(loaders, DataLoader)
        and loaders.collate_fn is default_collate
        and isinstance(loaders.sampler, DistributedSampler)
        and type(loaders.batch_sampler) is BatchSampler
    )


def _size_of_loaders(batch: Any, loaders: Any, *, is_told: bool) -> int | str:
    """Return how many samples the loaders' batch sizes say, or in words why that does not do."""
    if is_told:
        return "batch_size is a function of a process's own batch, and the processes' counts might part"
    parts = _of_loaders(batch, loaders)
    sizes = [getattr(each, "batch_size", None) for part, each in parts or [(batch, loaders)] if part is not None]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) == len(sizes):
        return sum(known)
    return "the processes' loaders have no common batch_size, and their counts might part"


def _as_size(size: Any) -> int:
    try:
        return index(size)
    except TypeError as error:
        raise ScheduleError(
            f"TrackOutputs's batch_size returned {type(size).__name__} {size!r:.80} for a batch; expected an int of at least 0"
        ) from error


def _size(batch: Any, loaders: Any) -> int | str:
    """Return how many samples a batch held, or in words why that is not known."""
    parts = _of_loaders(batch, loaders)
    if parts is not None:
        sizes = [
            0 if part is None else _size(part, loader) for part, loader in parts
        ]  # None: a loader that is at its end
        return next((size for size in sizes if isinstance(size, str)), None) or sum(map(int, sizes))
    lengths = sorted(set(_lengths(batch)))
    if len(lengths) == 1:
        return lengths[0]
    return (
        f"it is {type(batch).__name__} with arrays whose first dimensions are {lengths}"
        if lengths
        else (f"it is {type(batch).__name__} without arrays")
    )


def _of_loaders(batch: Any, loaders: Any) -> list[tuple[Any, Any]] | None:
    """Return the batch of each of several loaders, with that loader; None if it is not made up of such."""
    if isinstance(loaders, Mapping) and isinstance(batch, Mapping) and loaders.keys() == batch.keys():
        return [(batch[name], loaders[name]) for name in loaders]
    is_list = isinstance(loaders, list | tuple) and isinstance(batch, list | tuple)
    return list(zip(batch, loaders, strict=True)) if is_list and len(loaders) == len(batch) else None


def _lengths(part: Any) -> Iterator[int]:
    """Yield the first dimension of each array that a part of a batch has."""
    if isinstance(part, Tensor | np.ndarray):
        if part.ndim:
            yield len(part)
    elif isinstance(part, Mapping):
        for each in part.values():
            yield from _lengths(each)
    elif isinstance(part, list | tuple):
        for each in part:
            yield from _lengths(each)
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            yield from _lengths(getattr(part, field.name))


def named_outputs(outputs: Any) -> dict[str, Any]:
    """Return what a step returned, by name."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    return {"loss": outputs} if isinstance(outputs, Tensor) else {}


def losses_of(outputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the losses among a step's outputs: the number called `loss`, as `total`, and those whose name ends in it."""
    losses = {
        "total" if name == "loss" else name: value
        for name, value in outputs.items()
        if isinstance(name, str) and name.endswith("loss") and (isinstance(value, float) or _is_scalar(value))
    }
    return losses or None


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1
