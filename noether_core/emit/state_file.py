"""Save a state in a file and read it back: its arrays as safetensors, its structure as JSON in the file's metadata.

A state is what a `state_dict()` returns: dicts and lists of arrays, numbers, strings, bools and None. The arrays are named by
their number; in the JSON, `["array", 3]` stands for one and `["list", ...]` for a list. A CRC-32 covers the structure and all
arrays, and no byte of the file is run as code.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from noether_core.emit.array_header import DTYPES, FORMAT_HEADER, read_header
from noether_core.emit.files import write_whole
from noether_core.errors import NoetherError, RunFormatError
from noether_core.regular_files import open_regular

MOST_BYTES = 2**34  # of a file
_FORMAT = "noether state 1"
_KNOWN = {name: dtype for name, dtype in DTYPES.items() if dtype.isbuiltin == 1}  # NumPy's own
_Array = np.ndarray[Any, Any]


def write_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a state to a file that appears whole or not at all.

    Args:
        path: the file; its directory is made if need be.
        state: what a `state_dict()` returned; tensors and device arrays are copied to the host.

    Raises:
        NoetherError: for what is no state.
    """
    write_whole(Path(path), encode_state(state))


def read_state(path: str | Path, root: Path | None = None) -> dict[str, Any]:
    """Read what `write_state` wrote: with NumPy arrays for arrays, and lists for tuples.

    Args:
        path: the file.
        root: the run directory, below which no link is followed; None: the file may be anywhere.

    Raises:
        RunFormatError: for a file that is missing, damaged, or no state.
    """
    path = Path(path)
    try:
        with open_regular(path, root) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size) if size <= MOST_BYTES else b""
    except (OSError, RunFormatError, MemoryError) as error:
        raise RunFormatError(f"{path} cannot be read ({error}); give what save_state wrote") from error
    if size > MOST_BYTES:
        raise RunFormatError(f"{path} has {size} bytes, a state at most {MOST_BYTES}; give what save_state wrote")
    return decode_state(data, str(path))


def encode_state(state: Mapping[str, Any]) -> bytes:
    """Return a state as the bytes of its file; raises `NoetherError` for what is no state."""
    arrays: list[_Array] = []
    try:
        structure = json.dumps(_encoded(state, arrays), separators=(",", ":"))
    except Exception as error:  # whatever an array raises that is none
        raise NoetherError(f"cannot save the state ({error!s:.300}); give what state_dict() returned") from error
    named = {str(number): array for number, array in enumerate(arrays)}
    about = {"format": _FORMAT, "structure": structure, "crc32": _crc(structure, arrays)}
    data: bytes = safetensors.numpy.save(named, metadata=about)
    if len(data) > MOST_BYTES:
        raise NoetherError(f"the state has {len(data)} bytes, more than the {MOST_BYTES} of a file; stack fewer values")
    return data


def decode_state(data: bytes, name: str) -> dict[str, Any]:
    """Return the state in the bytes of a file; raises `RunFormatError`, which says that they are from `name`."""
    try:
        header = read_header(io.BytesIO(data), FORMAT_HEADER)
        about = header.metadata
        if about["format"] != _FORMAT:
            raise ValueError(f"its format is {about['format']!r:.80}, expected {_FORMAT!r}")
        places = sorted(header.places, key=lambda place: int(place.name))
        if [place.name for place in places] != [str(number) for number in range(len(places))]:
            raise ValueError("its arrays are not numbered")
        arrays = [
            np.frombuffer(data[place.begin : place.end], _KNOWN[place.dtype]).reshape(place.shape) for place in places
        ]
        if about["crc32"] != _crc(about["structure"], arrays):
            raise ValueError("its CRC-32 does not match")
        state = _decoded(json.loads(about["structure"]), arrays)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}, no dict")
    except Exception as error:  # whatever the libraries raise for damage
        raise RunFormatError(
            f"{name} is no intact state ({type(error).__name__}: {error!s:.200}); restore it from a copy, or give another one"
            " that save_state wrote"
        ) from error
    return state


def _crc(structure: str, arrays: Sequence[_Array]) -> str:
    crc = zlib.crc32(structure.encode("ascii"))
    for array in arrays:
        crc = zlib.crc32(array.tobytes(), zlib.crc32(f"{array.dtype}{array.shape}".encode("ascii"), crc))
    return f"{crc:08x}"


def _encoded(value: Any, arrays: list[_Array]) -> Any:
    """Return a value for JSON; its arrays are added to `arrays`."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        strange = next((key for key in value if not isinstance(key, str)), None)
        if strange is not None:
            raise ValueError(f"a name in it is {strange!r:.80} of type {type(strange).__name__}; expected text")
        return {key: _encoded(each, arrays) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return ["list", *(_encoded(each, arrays) for each in value)]
    if isinstance(value, np.generic):
        value = value.item()
        if isinstance(value, int | float):
            return value
    if not hasattr(value, "__array__"):
        raise ValueError(f"it holds a {type(value).__name__}; expected arrays, numbers, text, lists and dicts")
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.dtype.newbyteorder("<") not in _KNOWN.values():
        raise ValueError(f"it holds an array of {array.dtype}; expected bools, ints or floats of at most 64 bits")
    arrays.append(np.array(array, array.dtype.newbyteorder("<"), order="C"))
    return ["array", len(arrays) - 1]


def _decoded(value: Any, arrays: Sequence[_Array]) -> Any:
    if isinstance(value, dict):
        return {key: _decoded(each, arrays) for key, each in value.items()}
    if not isinstance(value, list):
        return value
    kind, *rest = value
    if kind == "list":
        return [_decoded(each, arrays) for each in rest]
    (number,) = rest
    return arrays[number].copy()
