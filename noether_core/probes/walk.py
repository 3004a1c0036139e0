"""Walk over a step's pieces, stage by stage: what front-ends share. Each says how it reads its trees of arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from noether_core.errors import NoetherError, warn
from noether_core.probes.naming import Names
from noether_core.probes.stages import Pieces, check_pieces, with_stage

_PIECES = {
    "data": "batch",
    "param": "params",
    "act": "activations",
    "loss": "losses",
    "grad": "grads",
    "clip": "clipped",
    "update": "updates",
}
_EXPECTED = {
    "batch": "the arrays that the step read, such as {'images': images}",
    "params": "the model's parameters: arrays by name",
    "activations": "arrays by the names of modules",
    "losses": "a number, or several by name",
    "updates": "arrays by the parameters' names",
}  # of gradients all may be None
_OF_PARAMETERS = ("param", "grad", "clip", "update")


class Reader(NamedTuple):
    """Say how a framework's pieces are read.

    Attributes:
        flat: gives the numbers of a tree, of a stage, with their dotted names, and leaves out what is none; of buffers the
            stage is `opt`. None has none.
        kept: gives what an optimizer's state has, given the step's pieces too: by field the arrays that are kept of
            parameters, by the parameters' names. The field `count` has one number; the field `""` names as they are to be.
        optimizer: says what an optimizer's state is to be.
    """

    flat: Callable[[str, Any], Iterable[tuple[str, Any]]]
    kept: Callable[[Any, Pieces], Iterable[tuple[str, Mapping[str, Any]]]]
    optimizer: str = "what the optimizer keeps of the parameters"


def stage_values(reader: Reader, pieces: Pieces, names: Names) -> dict[str, Any]:
    """Return a step's arrays by `stage/name`. Of a piece that is given and has none there is a warning.

    Args:
        reader: the framework's.
        pieces: what the step has.
        names: gives what has the parameters' names other names and layouts.

    Raises:
        NoetherError: for an unknown piece, or two arrays under one name.

    >>> reader = Reader(lambda stage, piece: (piece or {}).items(), lambda state, pieces: state.items())
    >>> stage_values(reader, {"losses": {"": 0.5}, "opt_state": {"mu": {"w": 1.0}}}, dict)
    {'loss/total': 0.5, 'opt/mu/w': 1.0}
    """
    check_pieces(pieces)
    found: dict[str, Any] = {}
    given: Mapping[str, Any] = pieces
    for stage, piece in _PIECES.items():
        arrays: Mapping[str, Any] = flat(reader, stage, given.get(piece))
        if given.get(piece) is not None and not arrays and piece in _EXPECTED:
            _tell_of_nothing(piece, given[piece], _EXPECTED[piece])
        if arrays and stage in _OF_PARAMETERS:
            arrays = names(arrays)
        found |= with_stage(stage, arrays)
    if buffers := flat(reader, "opt", pieces.get("buffers")):
        found |= with_stage("opt", names(buffers))
    for key, array in _of_optimizer(reader, pieces, names):
        found[_free(key, found)] = array
    return found


def _of_optimizer(reader: Reader, pieces: Pieces, names: Names) -> Iterator[tuple[str, Any]]:
    given = pieces.get("opt_state")
    if given is None:
        return
    state = getattr(given, "opt_state", given)  # of an `nnx.Optimizer`, or a whole `TrainState`
    has_kept = False
    for field, kept in reader.kept(state, pieces):
        own = kept if field in ("count", "") else names(kept)
        prefix = f"{field}/" if field not in ("count", "") else ""
        has_kept = has_kept or field != "count"
        yield from ((f"opt/{prefix}{name}", array) for name, array in own.items())
    if not has_kept and any(getattr(array, "ndim", 0) for array in flat(reader, "opt_state", state).values()):
        _tell_of_nothing("opt_state", given, f"{reader.optimizer}, beside params, updates or grads of the same names")


def _tell_of_nothing(piece: str, given: Any, expected: str) -> None:
    warn(
        f"probe found nothing to record in {piece}, a {type(given).__name__}; expected {expected}. Leave out what there is not"
    )


def flat(reader: Reader, stage: str, piece: Any) -> dict[str, Any]:
    """Return the numbers of a tree by dotted name, whatever its levels are called.

    Raises:
        NoetherError: for two of one name.
    """
    found: dict[str, Any] = {}
    for path, value in reader.flat(stage, piece):
        name = path.replace("/", ".").replace(".__call__", "")  # which Linen's modules have beside their names
        name = name.removeprefix("activations.") if stage == "act" else name
        if stage == "act" and name == "__call__":  # what the whole module returns, which PyTorch's hooks leave out too
            continue
        if name in found:
            raise NoetherError(f"probe got two arrays {name!r:.200} in {stage}; rename one of them")
        found[name] = value
    return found


def named(reader: Reader, stage: str, piece: Any) -> dict[str, Any]:
    """Return the numbers of a tree by `stage/name`; a lone one is the stage's `total`."""
    return with_stage(stage, flat(reader, stage, piece))


def _free(key: str, taken: Mapping[str, Any]) -> str:
    """Return a key, or one with a number where another part of an optimizer's state has it."""
    stage, field, *name = key.split("/", 2)
    number = 1
    while key in taken:
        number += 1
        key = "/".join((stage, f"{field}{number}", *name))
    return key
