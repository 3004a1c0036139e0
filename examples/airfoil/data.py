"""Provide the airfoils, their batches of points and the network's initial weights, in NumPy."""

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from examples.airfoil import flow

Float32 = npt.NDArray[np.float32]
Weights = dict[str, Float32]
Array = TypeVar("Array")  # of NumPy, JAX or PyTorch

AIRFOILS = 96
TEST_AIRFOILS = 16
SURFACE_POINTS = 64
VOLUME_POINTS = 128
BATCH_SIZE = 4
ACCUMULATION_STEPS = 2
EFFECTIVE_BATCH_SIZE = BATCH_SIZE * ACCUMULATION_STEPS
PASSES_PER_EPOCH = 2
UPDATES_PER_EPOCH = PASSES_PER_EPOCH * AIRFOILS // EFFECTIVE_BATCH_SIZE
EPOCHS = 8
LEARNING_RATE = 5e-3
CONTINUITY_WEIGHT = 0.01

POSITION, CONDITIONS, FLOW = 2, 3, 3
LAYER_SIZES = {
    "hidden1": (POSITION + CONDITIONS, 96),
    "hidden2": (96, 96),
    "hidden3": (96, 96),
    "flow": (96, FLOW),
}

_POOL = 4
_POSITION_GAINS = np.array([4, 20], np.float32)
_CONDITION_RANGES = np.array([[0.0, 0.05], [0.08, 0.18], [-0.05, 0.15]])


class Batch(NamedTuple, Generic[Array]):
    """Hold n airfoils' flow in float32.

    `conditions` (n, 3) are the camber, the thickness and the angle of attack, each scaled to [-1, 1]. Positions and
    velocities have two components, x and y, on the last axis; lengths are in chords and speeds in free streams.
    """

    conditions: Array
    surface_position: Array
    surface_pressure: Array
    volume_position: Array
    volume_velocity: Array


def _components(values: flow.Complex) -> npt.NDArray[np.float64]:
    return np.stack([values.real, values.imag], axis=-1)


def _sample_flow(generator: np.random.Generator) -> Batch[Float32]:
    """Return the flow of an airfoil drawn at random, on its surface and up to a chord away from it."""
    low, high = _CONDITION_RANGES.T
    scaled = generator.uniform(-1, 1, size=CONDITIONS)
    airfoil = flow.Airfoil(*(low + (high - low) * (scaled + 1) / 2))
    surface = flow.surface(airfoil, _POOL * SURFACE_POINTS)
    # From 1.05 radii on, clear of the trailing edge, where the velocity is 0 / 0; most points lie near the surface.
    radii = 1.05 + 2.95 * generator.random(_POOL * VOLUME_POINTS) ** 2
    volume = flow.points_around(airfoil, radii, generator.uniform(0, 2 * np.pi, size=len(radii)))
    values = (
        scaled,
        _components(surface.points),
        surface.pressure_coefficient,
        _components(volume),
        _components(flow.velocity(airfoil, volume)),
    )
    return Batch(*(value.astype(np.float32) for value in values))


def load(seed: int = 0) -> tuple[Batch[Float32], Batch[Float32]]:
    """Return the training and the test airfoils, each with `_POOL` times the points that a batch draws of it."""
    generator = np.random.default_rng(seed)
    flows = [_sample_flow(generator) for _ in range(AIRFOILS + TEST_AIRFOILS)]
    training, test = flows[:AIRFOILS], flows[AIRFOILS:]
    return Batch(*map(np.stack, zip(*training, strict=True))), Batch(*map(np.stack, zip(*test, strict=True)))


def batches(airfoils: Batch[Float32], epochs: int, seed: int = 1) -> Iterator[Batch[Float32]]:
    """Yield micro-batches of `BATCH_SIZE` airfoils, each at points of its own drawn at random."""
    generator = np.random.default_rng(seed)

    def draw(chosen: npt.NDArray[np.int64], available: int, points: int) -> tuple[npt.NDArray[np.int64], ...]:
        return chosen[:, None], np.stack([generator.choice(available, points, replace=False) for _ in chosen])

    for _ in range(epochs * PASSES_PER_EPOCH):
        for chosen in generator.permutation(len(airfoils.conditions)).reshape(-1, BATCH_SIZE):
            surface = draw(chosen, airfoils.surface_pressure.shape[1], SURFACE_POINTS)
            volume = draw(chosen, airfoils.volume_velocity.shape[1], VOLUME_POINTS)
            yield Batch(
                airfoils.conditions[chosen],
                airfoils.surface_position[surface],
                airfoils.surface_pressure[surface],
                airfoils.volume_position[volume],
                airfoils.volume_velocity[volume],
            )


def initial_weights(seed: int = 2) -> Weights:
    """Return `{layer}.kernel` of shape (inputs, outputs), normal with variance 1 / inputs, and `{layer}.bias`, zeros.

    The variance is that of Y. LeCun et al., "Efficient BackProp", 1998. The first layer's is larger for positions, by
    the squared `_POSITION_GAINS`: the flow changes over a part of the chord along x and of the thickness along y.
    """
    generator = np.random.default_rng(seed)
    weights: Weights = {}
    for layer, (inputs, outputs) in LAYER_SIZES.items():
        kernel = generator.normal(scale=np.sqrt(1 / inputs), size=(inputs, outputs))
        weights[f"{layer}.kernel"] = kernel.astype(np.float32)
        weights[f"{layer}.bias"] = np.zeros(outputs, np.float32)
    weights["hidden1.kernel"][:POSITION] *= _POSITION_GAINS[:, None]
    return weights
