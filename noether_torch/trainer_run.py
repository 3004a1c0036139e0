"""Track a run that a trainer drives."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar

from noether_core.emit.loggable import plain_value
from noether_core.errors import NoetherError
from noether_core.flight_recorder import require_steps
from noether_core.reduce.exchange import require_time_limit
from noether_torch.callbacks import Run


def run_options(time_limit: float, flight_recorder: int | None) -> dict[str, Any]:
    """Return arguments of a run; raises `NoetherError` for what it would refuse."""
    require_time_limit(time_limit, "TrackOutputs")
    require_steps(flight_recorder, "TrackOutputs")
    return {"time_limit": time_limit, "flight_recorder": flight_recorder}


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
