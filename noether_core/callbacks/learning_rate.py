"""Log the learning rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, ClassVar

from noether_core import schedule
from noether_core.callbacks.derived import DerivedOutputsCallback
from noether_core.checked import whole_or_never
from noether_core.config.loop import LearningRateCallbackConfig
from noether_core.errors import MissingKeyError, NoetherError, UpdateOutputError, listing, suggest
from noether_core.select import flat_outputs


class LearningRateCallback(DerivedOutputsCallback):
    """Log the learning rate of the interval's last update, from an update output or from an optimizer.

    Logs `optim/lr/{interval}`, or `optim/lr/{name}/{interval}` for each of several: a dict's names, or the parameter groups'
    `name` (their number where they have none). See `LearningRateCallbackConfig` for where it is read from.

    The front-ends' classes of this name add the backend; use those.

    Raises:
        NoetherError: unless the config has exactly one of `key` and `source`.
    """

    callback_config: LearningRateCallbackConfig
    _kept: ClassVar = {"seen_at": whole_or_never}
    _seen_at = -1  # the last update that was logged from the source

    def __init__(self, callback_config: LearningRateCallbackConfig, **arguments: Any) -> None:
        super().__init__(callback_config, **arguments)
        key, source = callback_config.key, callback_config.source
        if (key is None) == (source is None):
            raise NoetherError(
                f"{self} got {'neither key nor source' if key is None else 'both key and source'}; give one: key, the"
                " update output that holds the learning rate, or (in Python) source, an optimizer, its state or a function"
            )

    def derived(self, update_outputs: Any, losses: Any) -> dict[str, Any] | None:
        """Return the learning rates among the update outputs, by their log names."""
        key, prefix = self.callback_config.key, self.callback_config.prefix
        if key is None or update_outputs is None:
            return None
        outputs = flat_outputs(update_outputs)
        rates = {
            prefix + name.removeprefix(key): value
            for name, value in outputs.items()
            if name == key or name.startswith(key + "/")
        }
        if not rates:
            raise MissingKeyError(
                f"{self}: the learning rate's key {key!r} is not among the update outputs, which have {listing(outputs)}."
                f"{suggest(key, outputs)} Correct the key, or return it from the training step"
            )
        return rates

    def _emit(self, update_counter: schedule.Counter) -> None:
        self._log_source(update_counter)
        key = self.callback_config.key
        if key is not None and not self.tracking.has_values:
            self._warn_once(
                "rates",
                f"a whole interval had no update outputs to read {key!r} from; give them to run.step, or read"
                " the learning rate from a source",
            )
        super()._emit(update_counter)

    def after_training(self, *, update_counter: schedule.Counter, **_: Any) -> None:
        """Log the learning rate of an interval that training ended in the middle of."""
        self._log_source(update_counter)
        super().after_training(update_counter=update_counter)

    def _log_source(self, update_counter: schedule.Counter) -> None:
        config, update = self.callback_config, update_counter.update
        if config.source is None or self._seen_at == update or not update:
            return
        self._seen_at = update
        for name, value in self._rates(update - 1).items():
            self._add_scalar(config.log_key(f"{config.prefix}{name and '/'}{name}"), _number(name, value), ".5g")

    def _rates(self, update: int) -> Mapping[str, Any]:
        return read_rates(self.callback_config.source, update)


def read_rates(source: Any, update: int) -> dict[str, Any]:
    """Return the learning rates that a source has, by name; a lone one's name is empty.

    Args:
        source: as `LearningRateCallbackConfig` says.
        update: the update's number, counted from 0, for a function.

    Raises:
        UpdateOutputError: for a source that has none.

    >>> read_rates(lambda update: 0.1 / (1 + update), 1)
    {'': 0.05}
    """
    groups = getattr(source, "param_groups", None)
    if groups is not None:
        return rates_by_name([(str(group.get("name", at)), group["lr"]) for at, group in enumerate(groups)])
    found = list(_hyperparams(source))
    if found:
        return rates_by_name([(name or str(at), rate) for at, (name, rate) in enumerate(found)])
    if callable(source):
        return read_rates(source(update), update)
    if isinstance(source, Mapping):
        return distinct([(str(name), value) for name, value in source.items()])
    if isinstance(source, tuple | list) or source is None:
        raise UpdateOutputError(
            f"the source of the learning rate is {type(source).__name__} {source!r:.80}, which has none; expected a number,"
            " a dict of numbers, an optimizer with param_groups, or optax's state of inject_hyperparams(...)(learning_rate=...)"
        )
    return {"": source}


def rates_by_name(rates: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return learning rates by distinct names; a lone one's name is empty."""
    return {"": rates[0][1]} if len(rates) == 1 else distinct(rates)


def distinct(named: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return values by name; those that share a name get their place among all after it.

    >>> distinct([("decay", 0.1), ("bias", 0.2), ("decay", 0.3)])
    {'decay/0': 0.1, 'bias': 0.2, 'decay/2': 0.3}
    """
    found = dict(named)
    while len(found) < len(named):
        counts = Counter(name for name, _ in named)
        named = [(f"{name}/{at}" if counts[name] > 1 else name, value) for at, (name, value) in enumerate(named)]
        found = dict(named)
    return found


def _hyperparams(source: Any, name: str = "", scales: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the learning rates in an optax state, wherever they are in it, and the names of the parts that have names.

    What `reduce_on_plateau` scales the updates by is part of the rates in its chain.
    """
    hyperparams = getattr(source, "hyperparams", None)
    if isinstance(hyperparams, Mapping) and "learning_rate" in hyperparams:
        yield name, prod((*scales, *_scales(getattr(source, "inner_state", ()))), start=hyperparams["learning_rate"])
    elif isinstance(source, Mapping):
        for key, part in source.items():
            yield from _hyperparams(part, f"{name}/{key}" if name else str(key), scales)
    elif isinstance(source, tuple | list):
        scales = (*scales, *(part.scale for part in source if _is_plateau(part)))
        for part in source:
            yield from _hyperparams(part, name, scales)


def _is_plateau(state: Any) -> bool:
    return hasattr(state, "plateau_count") and hasattr(state, "scale")


def _scales(state: Any) -> list[Any]:
    """Return what every `reduce_on_plateau` in an optax state scales the updates by."""
    if _is_plateau(state):
        return [state.scale]
    return [scale for part in state for scale in _scales(part)] if isinstance(state, tuple | list) else []


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UpdateOutputError(
            f"the learning rate {name!r} is {type(value).__name__} {value!r:.80}; expected a number"
        ) from error
