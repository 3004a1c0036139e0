"""Log and save what a tracking callback computed, and say what was not finite."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.algebra.position import decode_position
from noether_core.emit.arrays import encode_savable
from noether_core.emit.files import write_whole
from noether_core.emit.log_writer import BoundLogWriter, LogWriter, ScalarWriter
from noether_core.errors import NoetherError, NonFiniteError
from noether_core.reduce.computed import Computed
from noether_core.reduce.partial import Partials


def log_computed(writer: ScalarWriter | None, logger: Logger, computed: Computed, *, verbose: bool) -> Exception | None:
    """Log everything that can be logged; return the first error.

    Args:
        writer: where to; None: to `logger` alone.
        logger: told too, if `verbose`.
        computed: what an interval gave.
        verbose: whether `logger` is told.
    """
    is_odd = computed.nonfinite is not None
    logged = writer.current_values() if is_odd and isinstance(writer, BoundLogWriter) else None
    scalars = computed.scalars(logged)
    if writer is None:
        for log_key, value in scalars.items():
            logger.info("%s: %s", log_key, format(value, ".5f"))
        return None
    told: dict[str, Any] = {"logger": logger, "format_str": ".5f"} if verbose else {}
    if isinstance(writer, BoundLogWriter):
        calls = [partial(writer.add_scalars, scalars, **told)]
    else:  # the user's own
        calls = [partial(writer.add_scalar, key=key, value=value, **told) for key, value in scalars.items()]
    first = None
    for call in calls:
        try:
            call()
        except Exception as error:
            first = first or error
    return first


def nonfinite_error(title: str, partials: Partials, processes: Mapping[str, int]) -> NonFiniteError:
    """Return what to raise for keys that had values which are not finite.

    Args:
        title: the callback's.
        partials: what these keys have.
        processes: the number of the process that each key's first such value was in, where there are several.
    """
    report = []
    for key, nan, positive, negative, position, elements in zip(
        partials.keys, *partials.statistics[-4:], partials.elements, strict=True
    ):
        update, step = decode_position(int(position))
        report.append(
            f"{key!r}: {nan} NaN, {positive} +inf, {negative} -inf of {elements} values, first at update {update},"
            f" accumulation step {step}, process {processes.get(key, 0)}"
        )
    return NonFiniteError(
        f"{title} tracked values that are not finite. {'; '.join(report)}. The interval's numbers are logged;"
        " nonfinite: propagate or nonfinite: skip goes on training"
    )


def save_arrays(writer: ScalarWriter, path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> NoetherError | None:
    """Write an array file, of which a writer of this package notes which start did, and does not wait for the disk.

    Returns:
        The error of the first array that the format cannot hold; all the others are written.
    """
    save = writer.save if isinstance(writer, LogWriter | BoundLogWriter) else write_whole
    data, error = encode_savable(arrays)
    save(path, data)
    return error
