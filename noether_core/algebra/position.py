"""Write a position in training, an update and its accumulation step, as one integer that orders as they do."""

from __future__ import annotations

NEVER = 2**63 - 1  # the position of "no non-finite value yet"
_STEPS_PER_UPDATE = 2**20


def encode_position(update: int, accumulation_step: int) -> int:
    """Return update (counted from 1) and accumulation step (from 0) as one number that orders as they do.

    Of an update with more than 2^20 steps, those beyond have one position.
    """
    return update * _STEPS_PER_UPDATE + min(accumulation_step, _STEPS_PER_UPDATE - 1)


def decode_position(code: int) -> tuple[int, int]:
    """Return the update and the accumulation step of a position.

    >>> decode_position(encode_position(update=7, accumulation_step=1))
    (7, 1)
    """
    return divmod(code, _STEPS_PER_UPDATE)
