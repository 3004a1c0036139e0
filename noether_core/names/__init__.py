"""Name and lay out parameters alike, whichever framework they come from.

PyTorch and Flax name and lay out the same layer's arrays differently. `match` finds which are which, says how it knows, and
gives a `Matching`, which converts weights, gradients or moments both ways. The canonical name of an array, and its canonical
layout, are PyTorch's; `canonical_names` gives them to a Flax model alone. This package knows arrays and names only: a model's
are given by `noether_jax.names` and `noether_torch.names`.

>>> import numpy as np
>>> flax = {"Dense_0/kernel": np.ones((2, 3)), "Dense_0/bias": np.zeros(3)}
>>> matching = match({"fc.weight": (3, 2), "fc.bias": (3,)}, flax).check()
>>> {name: array.shape for name, array in matching.to_canonical(flax).items()}
{'fc.weight': (3, 2), 'fc.bias': (3,)}
>>> sorted(matching.to_flax(matching.to_canonical(flax)))
['Dense_0/bias', 'Dense_0/kernel']
"""

from noether_core.names.fingerprint import fingerprint
from noether_core.names.layout import Layout, images_to_flax, images_to_torch
from noether_core.names.mapping import read_mapping
from noether_core.names.match import align, canonical_names, match
from noether_core.names.matching import Matching, UnmatchedNamesError
from noether_core.names.pieces import Entry, Piece, WeightsError
from noether_core.names.units import Layer

__all__ = [
    "Entry",
    "Layer",
    "Layout",
    "Matching",
    "Piece",
    "UnmatchedNamesError",
    "WeightsError",
    "align",
    "canonical_names",
    "fingerprint",
    "images_to_flax",
    "images_to_torch",
    "match",
    "read_mapping",
]
