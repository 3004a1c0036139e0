"""Track a run that a trainer drives."""

from __future__ import annotations

from typing import ClassVar

from noether_torch.callbacks import Run


class TrainerRun(Run):
    """Be a `Run` whose trainer says when an epoch ends and how many samples there were, and goes on as it likes."""

    _is_driven: ClassVar[bool] = True
