"""The pure tracker: structure, laws, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noether_core.errors import MissingKeyError, NoetherError, UpdateOutputError
from noether_jax import track_outputs

EXAMPLE = {"loss": jnp.float32(0), "field": jnp.zeros((2, 3), jnp.bfloat16), "n": jnp.int32(0), "lr": 0.1}
CONFIG = {"every_n_updates": 2, "patterns": [""], "reduce": ["mean", "var", "min", "count"]}


def outputs(seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    return {
        "loss": jnp.float32(rng.normal()),
        "field": jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16),
        "n": jnp.int32(rng.integers(-9, 9)),
        "lr": 0.1,
    }


def test_the_state_keeps_its_structure_shapes_and_dtypes() -> None:
    tracker = track_outputs(CONFIG | {"reduce": ["mean", "last"], "log_output": False, "save_output": True})
    before = tracker.init(EXAMPLE)
    after = tracker.update(before, outputs(0))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype, old.weak_type) == (new.shape, new.dtype, new.weak_type)
        assert old.dtype.itemsize <= 4 or jax.config.jax_enable_x64


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("promotion", ["standard", "strict"])
def test_x64_and_strict_promotion_change_nothing(x64: bool, promotion: str) -> None:
    with jax.enable_x64(x64), jax.numpy_dtype_promotion(promotion):
        tracker = track_outputs(CONFIG)
        state = tracker.init(EXAMPLE)
        update = jax.jit(lambda state, given: tracker.update(state, given | {"lr": 0.1}))
        for seed in range(5):
            given = outputs(seed)
            given.pop("lr")
            state = update(state, given)
        assert update._cache_size() == 1
        values = {name: value.tolist() for name, value in tracker.compute(state).items()}
    losses = [np.random.default_rng(seed).normal() for seed in range(5)]
    assert values["loss/mean"] == np.float32(np.mean(np.float32(losses).astype(float)))
    assert values["lr/mean"] == 0.1
    assert values["field/count"] == 30


def test_a_state_of_shapes_alone_is_made_of_shapes_alone() -> None:
    tracker = track_outputs({"every_n_updates": 1, "keys": ["loss"]})
    shapes = jax.eval_shape(lambda x: {"loss": x.sum()}, jax.ShapeDtypeStruct((4,), jnp.float32))
    state = tracker.update(tracker.init(shapes), {"loss": jnp.float32(3)})
    assert tracker.compute(state) == {"loss": np.float32(3)}


def test_merge_is_that_of_a_monoid() -> None:
    tracker = track_outputs(CONFIG)
    empty = tracker.init(EXAMPLE)
    parts = []
    for seeds in ((0, 1), (2,), (3, 4, 5)):
        state = empty
        for seed in seeds:
            state = tracker.update(state, outputs(seed))
        parts.append(state)
    a, b, c = parts
    left = tracker.compute(tracker.merge(tracker.merge(a, b), c))
    assert repr(left) == repr(tracker.compute(tracker.merge(a, tracker.merge(b, c))))
    assert repr(left) == repr(tracker.compute(tracker.merge(c, tracker.merge(b, a))))
    assert repr(tracker.compute(tracker.merge(empty, a))) == repr(tracker.compute(a))


def test_the_newest_value_is_kept_with_its_dtype_and_shape() -> None:
    config = {"every_n_updates": 1, "patterns": [""], "reduce": "last", "log_output": False, "save_output": True}
    tracker = track_outputs(config)
    update = jax.jit(lambda state, given: tracker.update(state, given | {"lr": 0.1}))
    state = tracker.init(EXAMPLE)
    for seed in range(3):
        given = outputs(seed)
        given.pop("lr")
        state = update(state, given)
    assert update._cache_size() == 1
    values = tracker.compute(state)
    for key, value in outputs(2).items():
        assert values[key].tobytes() == np.asarray(value).tobytes()
        assert values[key].dtype == np.asarray(value).dtype
    again = tracker.update(tracker.init(EXAMPLE), outputs(7))
    assert tracker.compute(tracker.merge(again, state))["n"] == values["n"]  # three steps are newer than one


def test_a_key_may_stay_away() -> None:
    tracker = track_outputs({"every_n_updates": 1, "keys": ["a", "b"], "missing": "skip", "reduce": ["sum", "count"]})
    state = tracker.init({"a": jnp.float32(0), "b": jnp.float32(0), "c": jnp.float32(0)})
    for given in ({"a": 1.0}, {"b": 2.0, "a": 3.0}, {"c": 1.0}):
        state = jax.jit(tracker.update)(state, {key: jnp.float32(value) for key, value in given.items()})
    values = {name: value.item() for name, value in tracker.compute(state).items()}
    assert values == {"a/sum": 4.0, "a/count": 2, "b/sum": 2.0, "b/count": 1}


def test_a_nan_is_counted_and_left_out() -> None:
    tracker = track_outputs({"every_n_updates": 1, "keys": ["a"], "nonfinite": "skip", "reduce": ["mean", "count"]})
    state = tracker.init({"a": jnp.float32(0)})
    for value in (1.0, np.nan, np.inf, 4.0):
        state = jax.jit(tracker.update)(state, {"a": jnp.float32(value)})
    assert {name: value.item() for name, value in tracker.compute(state).items()} == {"a/mean": 2.5, "a/count": 2}


def test_weights_weigh_and_masks_mask() -> None:
    tracker = track_outputs({"every_n_updates": 1, "keys": ["x", "w"], "weight": "w"})
    state = tracker.init({"x": jnp.zeros(3), "w": jnp.zeros(3, bool)})
    state = tracker.update(state, {"x": jnp.array([1.0, jnp.nan, 5.0]), "w": jnp.array([True, False, True])})
    values = tracker.compute(state)
    assert values["x"] == 3.0
    assert values["w"] == np.float32(2 / 3)


BAD = [
    ("an unknown key", {"keys": ["a"]}, {"a": 1.0}, {"a": 1.0, "ab": 1.0}, ["'ab'", "example", "every key"]),
    (
        "another dtype",
        {"keys": ["a"]},
        {"a": np.float32(1)},
        {"a": np.int32(1)},
        ["'a'", "int32", "float32", "eval_shape"],
    ),
    ("another shape", {"keys": ["a"]}, {"a": np.zeros(3, "f")}, {"a": np.zeros(4, "f")}, ["(4,)", "(3,)"]),
    ("a text", {"keys": ["a"]}, {"a": np.float32(1)}, {"a": "high"}, ["'a'", "str", "'high'"]),
    ("no dict", {"keys": ["a"]}, {"a": np.float32(1)}, [1], ["list", "expected a dict"]),
]


@pytest.mark.parametrize(("what", "config", "example", "given", "said"), BAD, ids=[case[0] for case in BAD])
def test_update_says_what_is_wrong(what: str, config: dict, example: dict, given: object, said: list[str]) -> None:
    tracker = track_outputs({"every_n_updates": 1, "patterns": ["a"]} | config)
    state = tracker.init(example)
    with pytest.raises(UpdateOutputError) as caught:
        tracker.update(state, given)
    for part in said:
        assert part in str(caught.value)


def test_what_cannot_be_is_refused() -> None:
    base = {"every_n_updates": 1, "keys": ["a"], "save_output": True}
    with pytest.raises(NoetherError, match=r"stack, which keeps every value.*run.step"):
        track_outputs(base | {"reduce": "stack"})
    with pytest.raises(NoetherError, match=r"last together with axis_name='data'"):
        track_outputs(base | {"reduce": "last"}, axis_name="data")
    with pytest.raises(NoetherError, match=r"got precision='float16'; expected 'binary64', 'binary32' or None"):
        track_outputs(base, precision="float16")
    tracker = track_outputs(base)
    with pytest.raises(MissingKeyError, match=r"'a' is not among the update outputs.*'aa'"):
        tracker.init({"aa": 1.0})
    with pytest.raises(UpdateOutputError, match=r"'a' has shape \(2,\).*`last`"):
        track_outputs(base | {"reduce": "last"}).init({"a": jnp.zeros(2)})
    with pytest.raises(UpdateOutputError, match=r"'a' has shape \(2,\), and its weight 'w' has shape \(3,\)"):
        track_outputs(base | {"weight": "w"}).init({"a": jnp.zeros(2), "w": jnp.zeros(3)})
    with pytest.raises(MissingKeyError, match=r"the weight 'w' is not among"):
        track_outputs(base | {"weight": "w"}).init({"a": jnp.zeros(2)})
    with pytest.raises(UpdateOutputError, match=r"'a' has dtype complex64"):
        tracker.init({"a": jnp.zeros(2, jnp.complex64)})
    with pytest.raises(NoetherError, match=r"merge got states of different outputs: 'a' and 'a'"):
        tracker.merge(tracker.init({"a": jnp.zeros(2)}), tracker.init({"a": jnp.zeros(3)}))
    with pytest.raises(NoetherError, match=r"update got a state of type dict"):
        tracker.update({}, {"a": jnp.zeros(2)})
