"""Save and load named arrays as safetensors: https://github.com/huggingface/safetensors (no code in the file, no pickle)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from noether_core.emit.escapes import escaped_name, name_of
from noether_core.emit.files import write_whole
from noether_core.errors import NoetherError, RunFormatError, listing

MOST_HEADER = 2**25  # bytes of all names, dtypes and shapes of a file
_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(bool),
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}


def encode_arrays(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Return arrays as the bytes of a safetensors file; equal arrays give equal bytes. For names see `escaped_name`.

    Raises:
        NoetherError: for a dtype that the format cannot hold, or too many long names.
    """
    named = {escaped_name(name): np.array(array, order="C") for name, array in sorted(arrays.items())}
    try:
        data = safetensors.numpy.save(named)
        if (length := int.from_bytes(data[:8], "little")) > MOST_HEADER:
            raise ValueError(f"the names of {len(arrays)} arrays take {length} bytes, of at most {MOST_HEADER}")
        return data
    except Exception as error:
        dtypes = listing(f"{name:.200}: {array.dtype}" for name, array in arrays.items())
        raise NoetherError(f"cannot save the arrays {dtypes} as safetensors: {error}; convert them first") from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays to a safetensors file that appears whole or not at all."""
    write_whole(path, encode_arrays(arrays))


def write_savable(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> NoetherError | None:
    """Write all arrays that the format can hold; return the error of the first that it cannot."""
    errors: dict[str, NoetherError] = {}
    try:
        write_arrays(path, arrays)
    except NoetherError:
        for name, array in arrays.items():
            try:
                encode_arrays({name: array})
            except NoetherError as error:
                errors[name] = error
        write_arrays(path, {name: array for name, array in arrays.items() if name not in errors})
    return next(iter(errors.values()), None)


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read every array of a safetensors file.

    Raises:
        RunFormatError: for a file that is not one, or holds a dtype unknown here.
    """
    with _readable(path):
        entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    return {
        name_of(name): np.frombuffer(entry["data"], _dtype(path, name, entry["dtype"])).reshape(entry["shape"]).copy()
        for name, entry in sorted(entries)
    }


class ArrayHeader(NamedTuple):
    """Say what an array in a file is."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def read_headers(path: Path) -> dict[str, ArrayHeader]:
    """Read what the arrays of a safetensors file are, but not the arrays; raises what `read_arrays` does."""
    with _readable(path), safetensors.safe_open(str(path), framework="np") as file:
        found = {name: file.get_slice(name) for name in sorted(file.keys())}
        entries = {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in found.items()}
    return {name_of(name): ArrayHeader(_dtype(path, name, dtype), shape) for name, (dtype, shape) in entries.items()}


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise RunFormatError(f"{path} is not a readable safetensors file ({error}); restore it from a copy") from error


def _dtype(path: Path, name: str, dtype: str) -> np.dtype[Any]:
    if dtype not in _DTYPES:
        raise RunFormatError(f"{path} holds {name!r} with dtype {dtype}; known here: {', '.join(_DTYPES)}")
    return _DTYPES[dtype]
