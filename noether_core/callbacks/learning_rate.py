"""Log the learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from noether_core.callbacks.derived import DerivedOutputsCallback
from noether_core.config.loop import LearningRateCallbackConfig
from noether_core.errors import MissingKeyError, NoetherError, UpdateOutputError, listing, suggest
from noether_core.schedule import Counter
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
    _kept: ClassVar = {"seen_at": int}
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

    def _emit(self, update_counter: Counter) -> None:
        self._log_source(update_counter)
        key = self.callback_config.key
        if key is not None and not self.tracking.has_values:
            self._warn_once(
                "rates",
                f"a whole interval had no update outputs to read {key!r} from; give them to run.step, or read"
                " the learning rate from a source",
            )
        super()._emit(update_counter)

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Log the learning rate of an interval that training ended in the middle of."""
        self._log_source(update_counter)
        super().after_training(update_counter=update_counter)

    def _log_source(self, update_counter: Counter) -> None:
        config, update = self.callback_config, update_counter.update
        if config.source is None or self._seen_at == update or not update:
            return
        self._seen_at = update
        for name, value in read_rates(config.source, update - 1).items():
            self._add_scalar(f"{config.prefix}{name and '/'}{name}/{self.interval}", _number(name, value), ".5g")


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
        rates = {str(group.get("name", at)): group["lr"] for at, group in enumerate(groups)}
        return {"": next(iter(rates.values()))} if len(groups) == 1 else rates
    found = _hyperparams(source)
    if found:
        return {"": found[0]} if len(found) == 1 else {str(at): rate for at, rate in enumerate(found)}
    if callable(source):
        return read_rates(source(update), update)
    if isinstance(source, Mapping):
        return {str(name): value for name, value in source.items()}
    if isinstance(source, tuple | list) or source is None:
        raise UpdateOutputError(
            f"the source of the learning rate is {type(source).__name__} {source!r:.80}, which has none; expected a number,"
            " a dict of numbers, an optimizer with param_groups, or optax's state of inject_hyperparams(...)(learning_rate=...)"
        )
    return {"": source}


def _hyperparams(source: Any) -> list[Any]:
    """Return the learning rates in an optax state: of each part that has `hyperparams`, however deep in the chain."""
    hyperparams = getattr(source, "hyperparams", None)
    if isinstance(hyperparams, Mapping) and "learning_rate" in hyperparams:
        return [hyperparams["learning_rate"]]
    parts = source if isinstance(source, tuple | list) else ()
    return [rate for part in parts for rate in _hyperparams(part)]


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UpdateOutputError(
            f"the learning rate {name!r} is {type(value).__name__} {value!r:.80}; expected a number"
        ) from error
