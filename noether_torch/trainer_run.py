"""Track a run that a trainer drives."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, TypedDict

from noether_core.emit.disk import Durability, require_durability
from noether_core.emit.loggable import plain_value
from noether_core.errors import NoetherError, refuse_unexpected
from noether_core.flight_recorder import require_steps
from noether_core.reduce.exchange import TIME_LIMIT, require_time_limit
from noether_torch.callbacks import Run


class RunOptions(TypedDict, total=False):
    """Name the options of `Run` that a trainer's callback hands on to its run."""

    time_limit: float
    durability: Durability
    flight_recorder: int | None


def checked_options(owner: type, options: RunOptions) -> RunOptions:
    """Return options of a `TrackOutputs`, all of them.

    Raises:
        TypeError: for one that there is not; the closest is named, of these and of what the class takes itself.
        NoetherError: for a value that cannot be.
    """
    whole: RunOptions = {"time_limit": TIME_LIMIT, "durability": "interval", "flight_recorder": None}
    refuse_unexpected(owner, options.keys() - whole.keys(), whole)
    whole.update(options)
    require_time_limit(whole["time_limit"], "TrackOutputs")
    require_durability(whole["durability"], "TrackOutputs")
    require_steps(whole["flight_recorder"], "TrackOutputs")
    return whole


class TrainerRun(Run):
    """Be a `Run` whose trainer says when an epoch ends and how many samples there were, and goes on as it likes."""

    _is_driven: ClassVar[bool] = True

    @property
    def is_open(self) -> bool:
        """Tell whether training is under way."""
        return self._state == "training"

    def end(self, error: BaseException | None = None) -> None:
        """End training, by an error of the trainer's if there is one."""
        if error is not None:
            self.flight_recorder.write(error)
        self._finish(failed=error is not None)

    def of_main(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a trainer's numbers as the main process has them; all processes make this call, and so decide alike by them.

        What no log can hold stays each process's own.
        """
        if self.pooling is None:
            return dict(values)
        plain = {}
        for key, value in values.items():
            with suppress(NoetherError):
                plain[key] = plain_value(key, value)
        return {**values, **self.pooling.of_main(plain, self.counter)}
