"""Say of the data loader that Accelerate iterates whether it is at its end, and how many samples its last batch held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

from torch.utils.data import (
    BatchSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from noether_core.callbacks import CallbackBase
from noether_core.callbacks.build import counts_samples
from noether_core.dependencies import needing
from noether_core.errors import ScheduleError

with needing("this bridge", "accelerate"):
    from accelerate.data_loader import (  # type: ignore[import-untyped] # it ships without types
        BatchSamplerShard,
        DataLoaderDispatcher,
        IterableDatasetShard,
        SeedableRandomSampler,
        SkipBatchSampler,
    )
    from accelerate.state import GradientState  # type: ignore[import-untyped]

# they give as many indices as their length says
_EXACT = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, SeedableRandomSampler)
_COLLATES = ("torch.", "transformers.")  # one sample of the data set is one of the batch


class IteratedLoader:
    """Find what a trainer iterates for its loader: the loader, or one that skips what a checkpoint's training has seen.

    Args:
        loader: the loader, before its first pass.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = self._now = loader
        active = GradientState().dataloader_references  # those that another training left in a pass's middle
        self._others = WeakSet(each for each in active if each is not None and each is not loader)

    def look(self) -> Any:
        """Return what is iterated now, or what was in the pass that ended last."""
        active = GradientState().active_dataloader
        if (
            active is not None
            and active not in self._others
            and active.dataset is getattr(self._loader, "dataset", None)
        ):
            self._now = active
        return self._now

    def begin_pass(self) -> None:
        """Look at the loader itself again."""
        self._now = self._loader


def is_exhausted(loader: Any) -> bool:
    """Tell whether the loader's newest batch is its last, as Accelerate found by asking for another."""
    return bool(getattr(loader, "end_of_dataloader", False))


def samples_of_batch(loader: Any, is_last: bool) -> int | str:
    """Return how many samples a batch of the loader held, or in words why that is not known.

    Of several processes it is those of all their batches, as the loader deals them out: all have the same number.

    Args:
        loader: the loader.
        is_last: whether it is the loader's last batch.
    """
    kind = type(getattr(loader, "base_dataloader", loader))
    if not kind.__module__.startswith("torch."):
        return f"{kind.__qualname__} may put any number of samples into one"
    collate = getattr(loader, "collate_fn", None)
    collate = getattr(collate, "data_collator", collate)  # the Trainer's wrapper, which drops columns
    module = getattr(collate, "__module__", None) or ""
    if not module.startswith(_COLLATES):
        return f"{_name(collate)} may put any number of samples into one"
    if isinstance(loader, DataLoaderDispatcher) and loader.state.num_processes > 1:
        return _of_dispatcher(loader, is_last)
    if isinstance(loader.dataset, IterableDataset):
        return _of_iterable(loader, is_last)
    sampler = loader.batch_sampler
    while type(sampler) is SkipBatchSampler:
        sampler = sampler.batch_sampler
    if type(sampler) is BatchSamplerShard:
        return _of_shards(sampler, is_last)
    if type(sampler) is not BatchSampler:
        return f"{_name(sampler)} may give any number of samples"
    full = sampler.batch_size
    if not is_last or sampler.drop_last:
        return full
    if type(sampler.sampler) not in _EXACT and not type(sampler.sampler).__module__.startswith("transformers."):
        return f"{_name(sampler.sampler)} may give any number of samples"
    return len(sampler.sampler) % full or full  # type: ignore[arg-type] # these have a length


def refuse_unknown_samples(callbacks: Sequence[CallbackBase], why: str, advice: str) -> None:
    """Raise `ScheduleError` if one of the callbacks counts samples."""
    for callback in callbacks:
        if counts_samples(callback):
            raise ScheduleError(f"{callback} counts samples, but how many a batch held is not known: {why}. {advice}")


def _of_shards(shards: Any, is_last: bool) -> int | str:
    """Return how many samples the batches of all processes held that one loader's batches are dealt out to."""
    batches = shards.batch_sampler
    if type(batches) is not BatchSampler:
        return f"{_name(batches)} may give any number of samples"
    if not shards.even_batches and not shards.drop_last:
        return "with even_batches=False the processes' last batches may be of different sizes"
    return int(batches.batch_size) * (
        1 if shards.split_batches else int(shards.num_processes)
    )  # the last one is filled up


def _of_dispatcher(loader: Any, is_last: bool) -> int | str:
    """Return how many samples the batches held that the first process read and dealt out."""
    has_workers = loader.num_workers > 0 and isinstance(loader.dataset, IterableDataset)
    if not isinstance(loader.batch_size, int) or has_workers:
        return f"{_name(loader)} may deal out any number of samples"
    processes = int(loader.state.num_processes)
    if is_last and is_exhausted(loader):
        return -(-int(loader.remainder) // processes) * processes  # the last one is filled up
    return loader.batch_size * (1 if loader.split_batches else processes)


def _of_iterable(loader: Any, is_last: bool) -> int | str:
    if loader.num_workers or not isinstance(loader.batch_size, int):
        return f"{_name(loader.dataset)} is iterable, and each of several workers may end in the middle of a batch"
    if isinstance(loader.dataset, IterableDatasetShard):  # which fills its last batch up
        shards = loader.dataset
        return int(shards.batch_size) * (1 if shards.split_batches else int(shards.num_processes))
    if not is_last or not is_exhausted(loader):
        return loader.batch_size
    if not isinstance(loader, DataLoaderDispatcher):
        return f"{_name(loader.dataset)} is iterable, and may end in the middle of a batch"
    return int(loader.remainder)  # which is that batch's size, once it is there


def _name(thing: Any) -> str:
    return getattr(thing, "__qualname__", type(thing).__qualname__)
