"""Provide the handwritten digits, their batches and the network's initial weights, in NumPy.

The 1,797 images of 8x8 pixels come with scikit-learn: the test set of E. Alpaydin and C. Kaynak, "Optical Recognition
of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]
Weights = dict[str, npt.NDArray[np.float32]]

CLASSES = 10
BATCH_SIZE = 32
ACCUMULATION_STEPS = 2
EFFECTIVE_BATCH_SIZE = BATCH_SIZE * ACCUMULATION_STEPS
UPDATES_PER_EPOCH = 22
EPOCHS = 8
LEARNING_RATE = 3e-3
AUXILIARY_WEIGHT = 0.1

LAYER_SIZES = {"hidden1": (64, 64), "hidden2": (64, 32), "classifier": (32, CLASSES), "decoder": (32, 64)}

_TRAINING_IMAGES = UPDATES_PER_EPOCH * EFFECTIVE_BATCH_SIZE


class Digits(NamedTuple):
    """Hold images, float32 of shape (n, 64) in [0, 1], and their labels, int32 of shape (n,)."""

    images: Images
    labels: Labels


def load(seed: int = 0) -> tuple[Digits, Digits]:
    """Return the training and the test digits: 1,408 and 389 of them, split by a fixed permutation."""
    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(classes))
    images, labels = (pixels[order] / 16).astype(np.float32), classes[order].astype(np.int32)
    return (
        Digits(images[:_TRAINING_IMAGES], labels[:_TRAINING_IMAGES]),
        Digits(images[_TRAINING_IMAGES:], labels[_TRAINING_IMAGES:]),
    )


def batches(digits: Digits, epochs: int, seed: int = 1) -> Iterator[Digits]:
    """Yield micro-batches of `BATCH_SIZE` digits, in a new order each epoch."""
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        for chosen in generator.permutation(len(digits.labels)).reshape(-1, BATCH_SIZE):
            yield Digits(digits.images[chosen], digits.labels[chosen])


def initial_weights(seed: int = 2) -> Weights:
    """Return `{layer}.kernel` of shape (inputs, outputs), normal with variance 2 / inputs, and `{layer}.bias`, zeros.

    The variance is that of K. He et al., "Delving Deep into Rectifiers", ICCV 2015.
    """
    generator = np.random.default_rng(seed)
    weights: Weights = {}
    for layer, (inputs, outputs) in LAYER_SIZES.items():
        kernel = generator.normal(scale=np.sqrt(2 / inputs), size=(inputs, outputs))
        weights[f"{layer}.kernel"] = kernel.astype(np.float32)
        weights[f"{layer}.bias"] = np.zeros(outputs, np.float32)
    return weights
