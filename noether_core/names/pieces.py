"""Say which rows of which Flax arrays make a PyTorch array, and put them together or take them apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from noether_core.errors import NoetherError, listing
from noether_core.names.layout import Layout, Shape, same

Rows = tuple[int, int]


class WeightsError(NoetherError, ValueError):
    """Report arrays that cannot be converted: a path, a shape, or a value that the other side has no place for."""


@dataclass(frozen=True)
class Piece:
    """Say where one block of rows of a PyTorch array is in Flax.

    Attributes:
        path: the Flax array's; empty where Flax has none.
        layout: of that whole array.
        rows: from which row of it, laid out as PyTorch's, to which; None is all of it.
        role: `same`; `added`, where PyTorch adds a second array to what Flax has as one (an RNN's two biases); or `absent`,
            where Flax adds nothing.
    """

    path: str
    layout: Layout
    rows: Rows | None = None
    role: Literal["same", "added", "absent"] = "same"

    @property
    def shape(self) -> Shape:
        """The block's shape in PyTorch."""
        shape = self.layout.shape
        return shape if self.rows is None else (self.rows[1] - self.rows[0], *shape[1:])

    def between(self, start: int, stop: int) -> Piece:
        """Return some rows of this block."""
        first = 0 if self.rows is None else self.rows[0]
        if self.rows is None and (start, stop) == (0, self.layout.shape[0]):
            return self
        return replace(self, rows=(first + start, first + stop))


def whole(path: str, layout: Layout) -> tuple[Piece, ...]:
    """Return a whole array as the only block."""
    return (Piece(path, layout),)


def absent(rows: int) -> Piece:
    """Return a block of a vector that Flax has nothing for."""
    return Piece("", same((rows,)), None, "absent")


def shape_of(pieces: Sequence[Piece]) -> Shape:
    """Return the shape of blocks put together.

    >>> shape_of((absent(2), absent(3)))
    (5,)
    """
    first = pieces[0].shape
    return first if len(pieces) == 1 else (sum(piece.shape[0] for piece in pieces), *first[1:])


@dataclass(frozen=True)
class Entry:
    """Hold one matched name.

    Attributes:
        name: PyTorch's.
        pieces: what it is in Flax, row by row.
        how: how the pair was found: `mapping`, `name`, `fingerprint`, `shape` or `order`.
    """

    name: str
    pieces: tuple[Piece, ...]
    how: str

    @property
    def shape(self) -> Shape:
        """Its shape in PyTorch."""
        return shape_of(self.pieces)

    @property
    def paths(self) -> tuple[str, ...]:
        """The Flax arrays that it is made of, each once."""
        return tuple(dict.fromkeys(piece.path for piece in self.pieces if piece.path))


def overlaps(torch: Sequence[Piece], flax: Sequence[Piece]) -> Iterator[tuple[str, Rows | None, Piece]]:
    """Yield, of two rows of blocks that make the same array, each PyTorch name, its rows and what these are in Flax."""
    if len(torch) == len(flax) == 1:
        yield torch[0].path, torch[0].rows, flax[0]
        return
    left, right = list(torch), list(flax)
    while left and right:
        rows = min(left[0].shape[0], right[0].shape[0])
        yield left[0].path, left[0].between(0, rows).rows, right[0].between(0, rows)
        for blocks in (left, right):
            here = blocks.pop(0)
            if here.shape[0] > rows:
                blocks.insert(0, here.between(rows, here.shape[0]))


def to_torch(entries: Iterable[Entry], arrays: Mapping[str, Any], gradients: bool) -> dict[str, Any]:
    """Return PyTorch's arrays by name, in the entries' order; without those that `arrays` lacks a block of."""
    named = {}
    for entry in entries:
        if all(path in arrays for path in entry.paths):
            blocks = [_block(piece, arrays, gradients) for piece in entry.pieces]
            named[entry.name] = _joined(_with_zeros(blocks, entry, arrays))
    return named


def _block(piece: Piece, arrays: Mapping[str, Any], gradients: bool) -> Any:
    """Return a block, or None for zeros. The gradient of each of two summands is that of their sum."""
    if piece.role == "absent" or (piece.role == "added" and not gradients):
        return None
    array = arrays[piece.path]
    if tuple(array.shape) != piece.layout.stored:
        raise WeightsError(
            f"{piece.path!r} has shape {tuple(array.shape)}, and had {piece.layout.stored} when its name was matched: "
            "match again with this model's arrays"
        )
    laid_out = piece.layout.to_torch(array)
    return laid_out if piece.rows is None else laid_out[piece.rows[0] : piece.rows[1]]


def _with_zeros(blocks: list[Any], entry: Entry, arrays: Mapping[str, Any]) -> list[Any]:
    if all(block is not None for block in blocks):
        return blocks
    like = arrays[entry.paths[0]]
    zeros = like.__array_namespace__().zeros
    made = [zeros(piece.shape, dtype=like.dtype) for piece in entry.pieces]
    return [empty if block is None else block for block, empty in zip(blocks, made, strict=True)]


def _joined(blocks: list[Any]) -> Any:
    return blocks[0] if len(blocks) == 1 else blocks[0].__array_namespace__().concat(blocks, axis=0)


def to_flax(entries: Iterable[Entry], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return Flax's arrays by path; without those that `arrays` lacks a part of."""
    taken: dict[str, list[tuple[Piece, Any]]] = {}
    incomplete: set[str] = set()
    for entry in entries:
        if entry.name not in arrays:
            incomplete.update(piece.path for piece in entry.pieces if piece.role == "same")
            continue
        if tuple(arrays[entry.name].shape) != entry.shape:
            raise WeightsError(
                f"{entry.name!r} has shape {tuple(arrays[entry.name].shape)}; it was matched with "
                f"{listing(entry.paths)}, which needs {entry.shape}: match again with this model's arrays"
            )
        for piece, block in _apart(entry, arrays[entry.name]):
            taken.setdefault(piece.path, []).append((piece, block))
    there = {path: blocks for path, blocks in taken.items() if path and is_whole(piece for piece, _ in blocks)}
    return {path: _from_blocks(blocks) for path, blocks in there.items() if path not in incomplete}


def is_whole(pieces: Iterable[Piece]) -> bool:
    """Tell whether blocks of one Flax array are all of it."""
    own = {_start(piece): piece for piece in pieces if piece.role == "same"}
    shapes = [piece.layout.shape for piece in own.values()]
    return bool(own) and (not shapes[0] or sum(piece.shape[0] for piece in own.values()) == shapes[0][0])


def _apart(entry: Entry, array: Any) -> Iterator[tuple[Piece, Any]]:
    if len(entry.pieces) == 1:
        yield entry.pieces[0], array
        return
    start = 0
    for piece in entry.pieces:
        stop = start + piece.shape[0]
        block = array[start:stop]
        if piece.role == "absent" and bool((block != 0).any()):
            raise WeightsError(
                f"{entry.name!r} is not zero in rows {start} to {stop - 1}, for which the Flax layer has no array: "
                "it cannot compute the same. Use a layer with that bias, or zero these rows"
            )
        yield piece, block
        start = stop


def _from_blocks(blocks: list[tuple[Piece, Any]]) -> Any:
    kept: dict[int, Any] = {}
    for piece, block in blocks:
        if piece.role == "same":
            kept.setdefault(_start(piece), block)  # of two names for one array, either
    laid_out = _joined([kept[start] for start in sorted(kept)])
    for piece, block in blocks:
        if piece.role == "added":
            laid_out = laid_out + _padded(block, _start(piece), laid_out.shape[0])
    return blocks[0][0].layout.to_flax(laid_out)


def _start(piece: Piece) -> int:
    return 0 if piece.rows is None else piece.rows[0]


def _padded(block: Any, start: int, rows: int) -> Any:
    """Return a block of a vector with zeros around it."""
    if block.shape[0] == rows:
        return block
    zeros = block.__array_namespace__().zeros
    around = [zeros((count,), dtype=block.dtype) for count in (start, rows - start - block.shape[0])]
    return _joined([around[0], block, around[1]])
