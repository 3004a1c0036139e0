"""Read a PyTorch model's arrays by name, and write them back.

matching = match(weights(model), noether_jax.names.weights(theirs), torch_layers=layers(model)).check()
load(model, matching.to_canonical(noether_jax.names.weights(theirs)))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noether_core.errors import listing
from noether_core.names import Layer, WeightsError
from noether_torch.numpy_arrays import to_array, to_tensor

_KINDS: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("linear", (nn.Linear,)),
    ("conv_transpose", (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
    ("conv", (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    ("embedding", (nn.Embedding, nn.EmbeddingBag)),
    ("norm", (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)),
)


def weights(model: nn.Module | Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Return a model's parameters and buffers by name, copied to NumPy.

    Args:
        model: a module, whose shared parameters are given once, under their first name, and whose buffers that no state dict
            has are left out; or tensors by name, such as a state dict or gradients.

    >>> {name: array.shape for name, array in weights(nn.Linear(2, 3)).items()}
    {'weight': (3, 2), 'bias': (3,)}
    """
    return {name: np.array(to_array(tensor.detach().cpu().contiguous())) for name, tensor in _tensors(model).items()}


def layers(model: nn.Module) -> dict[str, Layer]:
    """Return what is known of a model's modules, by name.

    >>> layers(nn.Sequential(nn.Conv2d(1, 2, 3)))["0"].kind
    'conv'
    """
    return {name: Layer(_kind(module)) for name, module in model.named_modules()}


def load(model: nn.Module, canonical: Mapping[str, Any], *, strict: bool = True) -> nn.Module:
    """Write arrays into a model in place; each keeps the dtype and the device that the model's has.

    Args:
        model: the module.
        canonical: arrays by name, as `Matching.to_canonical` gives them.
        strict: whether each of the model's arrays must be given; how many batches a BatchNorm has seen need not be.

    Returns:
        that module.

    Raises:
        WeightsError: for arrays that are not given, that the model does not have, or whose shape differs.

    >>> layer = load(nn.Linear(2, 1), {"weight": np.ones((1, 2)), "bias": np.zeros(1)})
    >>> layer(torch.tensor([3.0, 4.0])).item()
    7.0
    """
    tensors = _tensors(model)
    if strangers := [name for name in canonical if name not in tensors]:
        raise WeightsError(f"the model has no {listing(strangers)}; it has {listing(tensors)}")
    left = [name for name in tensors if name not in canonical and not name.endswith("num_batches_tracked")]
    if strict and left:
        raise WeightsError(
            f"no weights were given for {listing(left)}: complete the matching, or give strict=False to leave these as they are"
        )
    for name, array in canonical.items():
        if tuple(array.shape) != tuple(tensors[name].shape):
            raise WeightsError(f"{name!r} has shape {tuple(tensors[name].shape)}, and {tuple(array.shape)} was given")
    with torch.no_grad():
        for name, array in canonical.items():
            tensors[name].copy_(to_tensor(np.asarray(array)))
    return model


def _tensors(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(model, nn.Module):
        return dict(model)
    kept = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in kept.items():
        first.setdefault(id(tensor), name)
    return {name: tensor for name, tensor in kept.items() if isinstance(tensor, Tensor) and first[id(tensor)] == name}


def _kind(module: nn.Module) -> str:
    if type(module).__name__ == "Conv1D":  # what transformers' GPT-2 has for linear layers: (in, out)
        return "in_out"
    known = next((kind for kind, classes in _KINDS if isinstance(module, classes)), "")
    return known or ("" if type(module).__module__.startswith("torch.nn.") else "other")
