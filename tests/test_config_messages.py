"""What a wrong config says: its place in the list, the closest name, the allowed values; each problem once, and no links."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import noether_torch
from noether_core import ConfigFileError, NoetherError, TrackAdditionalOutputsCallbackConfig, load_callbacks
from noether_core.config.load import KINDS, parse_callback

REDUCTIONS = "'mean', 'last', 'sum', 'min', 'max', 'std', 'var', 'count' or 'stack'"
GOOD: dict[str, Any] = {"every_n_updates": 1, "keys": ["loss"]}


@pytest.mark.parametrize(
    ("fields", "place", "message"),
    [
        ({"kys": ["a"]}, "kys", "'kys' is no field of Track.* Did you mean 'keys'?"),
        ({"patern": ["a"]}, "patern", "Did you mean 'patterns'?"),
        ({"every_n_updates": 0}, "every_n_updates", "got 0; expected at least 1"),
        ({"every_n_updates": "10"}, "every_n_updates", r"got '10' \(str\); expected a valid integer"),
        (
            {"reduce": "avg"},
            "reduce",
            f"got 'avg'; expected {REDUCTIONS}, a list of these, or a dict from a key or pattern",
        ),
        ({"reduce": "maen"}, "reduce", "Did you mean 'mean'?"),
        ({"reduce": 5}, "reduce", f"got 5; expected {REDUCTIONS}, a list of these, or a dict"),
        ({"reduce": ["mean", "medn"]}, "reduce.1", "got 'medn'.*Did you mean 'mean'?"),
        ({"reduce": {"loss": "medn"}}, "reduce.loss", "got 'medn'.* or a list of these.*Did you mean 'mean'?"),
        ({"reduce": {"loss": ["mean", 3]}}, "reduce.loss.1", f"got 3; expected {REDUCTIONS}"),
        ({"keys": "loss"}, "keys", r"got the string 'loss'; write a list: \[loss\]"),
        ({"keys": [1]}, "keys.0", r"got 1 \(int\); expected a valid string"),
        ({"missing": "skp"}, "missing", "got 'skp'; expected 'error', 'warn' or 'skip'. Did you mean 'skip'?"),
        ({"verbose": 1}, "verbose", r"got 1 \(int\); expected a valid boolean"),
    ],
)
def test_each_problem_is_said_once_in_our_form(
    fields: dict[str, Any], place: str, message: str, tmp_path: Path
) -> None:
    expected = f"{place}\n  .*{message}"
    with pytest.raises(ValidationError, match=rf"(?s)^1 validation error for callbacks\[1\]\n{expected}") as caught:
        noether_torch.Run(tmp_path, [GOOD, {**GOOD, **fields}])
    assert "http" not in str(caught.value)
    with pytest.raises(ValidationError, match=f"(?s)^1 validation error for Track.*\n{place}\n  .*{message}"):
        TrackAdditionalOutputsCallbackConfig(**{**GOOD, **fields})


def test_a_file_and_the_place_in_it_are_named(tmp_path: Path) -> None:
    file = tmp_path / "callbacks.yaml"
    file.write_text("callbacks:\n- {every_n_updates: 1, keys: [a]}\n- {kind: ProgressCallback}\n")
    with pytest.raises(
        ValidationError, match=r"for callbacks\[1\] in '.*callbacks.yaml'\n  got no interval; set exactly"
    ):
        load_callbacks(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*TrackAdditionalOutputsCallbackConfig.model_fields, "source_metric_key", "x"]) | st.integers(
    0, 1
)


@given(st.sampled_from([None, *KINDS]), st.dictionaries(NAMES, JSON, max_size=6))
def test_any_fields_give_a_config_or_a_message_of_ours(kind: str | None, fields: dict[Any, Any]) -> None:
    entry = {**GOOD, **fields} if kind is None else {"kind": kind, "every_n_updates": 1, **fields}
    error: Exception | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parse_callback(entry, "callbacks[3]")
        except (ConfigFileError, ValidationError) as raised:
            error = raised
    if error is None:
        return
    assert "callbacks[3]" in str(error).partition("\n")[0]
    assert "http" not in str(error)
    if isinstance(error, ValidationError):
        assert len({each["loc"] for each in error.errors()}) == error.error_count()


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ({"kind": "tensorboard", "direktory": "x"}, "tensorboard tracker got 'direktory', which it does not take"),
        ({"kind": "mlflow", "experimnt": "x"}, "mlflow tracker got 'experimnt', which it does not take"),
        ({"kind": "wandb", "projct": "x"}, "argument 'projct', which wandb does not take. Did you mean 'project'?"),
        ({"kind": "wandb", "settings": {"silnt": True}}, "setting 'silnt', which wandb does not take.*'silent'?"),
        ({"kind": "tensorbord"}, "Did you mean 'tensorboard'?"),
    ],
)
def test_a_mistyped_tracker_option_fails_at_construction(tracker: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(NoetherError, match=message):
        noether_torch.Run(tmp_path, [GOOD], trackers=[tracker])
