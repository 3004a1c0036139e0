"""Make a training script one that can make its own twins; see `noether_core.twin`.

model = twin(model)
with Run(twin_path("runs/port"), CALLBACKS) as run:
    for batch in batches:
        x, y = twin_batch(batch)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from noether_core.twin import TwinError, leaves_of, nudged, rows_permuted, this_twin
from noether_torch.numpy_arrays import to_array, to_tensor

Weights = TypeVar("Weights", bound=nn.Module | Mapping[str, Any] | Iterable[Any])
Batch = TypeVar("Batch")


def twin(weights: Weights) -> Weights:
    """Nudge weights, in place, by one rounding error while `noether-parity calibrate` makes a twin; otherwise do nothing.

    Call it when the weights have their first values, before training.

    Args:
        weights: a module, of which the parameters are nudged, or a dict or list of tensors, nested or not. Of any float dtype;
            zeros are not nudged, nor is what holds integers.

    Returns:
        The same object.

    Raises:
        TwinError: for anything else, and if a twin is to be made and there is nothing to nudge.

    >>> model = nn.Linear(2, 3)
    >>> twin(model) is model
    True
    """
    if isinstance(weights, nn.Module):
        found: list[Any] = list(weights.parameters())
    elif isinstance(weights, Mapping | list | tuple):
        found = []
        leaves_of(weights, found.append)
    else:
        raise TwinError(
            f"twin got {type(weights).__name__!r}; expected a module, or a dict or list of tensors (for a generator:"
            " `twin(list(model.parameters()))`)"
        )
    making = this_twin()
    if making is not None:
        tensors = list({id(each): each for each in found if isinstance(each, Tensor)}.values())
        if not tensors:
            raise TwinError("twin got no tensors, so that there is nothing to nudge; give it the model")
        for number, tensor in enumerate(tensors):
            _nudge(tensor, making.seed, number)
    return weights


@torch.no_grad()
def _nudge(tensor: Tensor, seed: int, number: int) -> None:
    held = tensor.detach()
    local = held.to_local() if hasattr(held, "to_local") else held  # of a DTensor, what this process has of it
    host = local.cpu().contiguous()
    local.copy_(to_tensor(nudged(to_array(host), seed, number)).reshape(local.shape))


def twin_batch(batch: Batch) -> Batch:
    """Return a batch with its rows permuted while a twin of that kind is made; otherwise the batch itself.

    Args:
        batch: a tensor, or dicts, lists, tuples or dataclasses of tensors, each with one row an example. Scalars, and what is
            no tensor, stay.

    Raises:
        TwinError: if the tensors have different numbers of rows.

    >>> twin_batch((torch.zeros(4, 2), torch.zeros(4)))[0].shape
    torch.Size([4, 2])
    """
    making = this_twin()
    if making is None or not making.rows:
        return batch
    leaves: list[Any] = []
    leaves_of(batch, leaves.append)
    permuted = iter(rows_permuted(leaves))
    changed: Batch = leaves_of(batch, lambda _: next(permuted))
    return changed
