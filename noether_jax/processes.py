"""Exchange between the processes of `jax.distributed`: integers by XLA's collectives, arrivals by the coordination service.

A collective with a stopped process never returns, so that every exchange begins with an arrival, which has a time limit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from noether_core.errors import NoetherError, ProcessesMissingError
from noether_core.reduce.exchange import TIME_LIMIT, Exchange
from noether_core.reduce.partial import Vector
from noether_jax.arrivals import Arrivals, Client
from noether_jax.transfers import ours

_PIECE = 2**20  # bytes; through the service, pieces of 16 MiB take twice as long a byte


def process_exchange(*, time_limit: float = TIME_LIMIT) -> Exchange:
    """Return what talks to the other processes of `jax.distributed`; all of them make this call.

    Args:
        time_limit: seconds that one waits for the others.

    Raises:
        NoetherError: if `jax.distributed.initialize` was not called.
    """
    return _ProcessExchange(_client(), time_limit)


def _client() -> Client:
    """Return JAX's client of its coordination service, which has no public name."""
    try:
        from jax._src.distributed import global_state

        client: Any = global_state.client
        missing = [name for name in _NEEDED if client is not None and not hasattr(client, name)]
    except (ImportError, AttributeError) as error:
        client, missing = None, [str(error)]
    if missing:
        raise NoetherError(
            f"JAX {jax.__version__} has its coordination service elsewhere ({', '.join(missing)}); expected"
            " jax._src.distributed.global_state.client as in JAX 0.10: use that version, or track each process by itself with"
            " processes=1"
        )
    if client is None:
        raise NoetherError(
            f"there are {jax.process_count()} processes and no client of JAX's coordination service, through which they find"
            " each other: call jax.distributed.initialize before anything else of JAX"
        )
    return client  # type: ignore[no-any-return]


_NEEDED = [name for name in vars(Client) if name.startswith(("key", "wait", "blocking"))]


class _ProcessExchange:
    """Exchange over a mesh of one device of each process; see `Exchange`."""

    def __init__(self, client: Client, time_limit: float) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()
        self._client, self._time_limit = client, time_limit
        self._name = f"noether/{client.key_value_increment(f'noether/exchanges/{self.index}', 1)}"
        self._arrivals = Arrivals(client, self._name, self.index, self.count, time_limit)
        self._gathers = 0
        self._compiled: dict[tuple[str, int], Callable[[Any], Any]] = {}
        first: dict[int, Any] = {}
        for device in jax.devices():
            first.setdefault(device.process_index, device)
        devices = [first[process] for process in range(self.count)]
        self._device = devices[self.index]
        self._mesh = Mesh(np.array(devices), ("process",))
        self._rows = NamedSharding(self._mesh, PartitionSpec("process"))  # type: ignore[no-untyped-call]
        self._everywhere = NamedSharding(self._mesh, PartitionSpec())  # type: ignore[no-untyped-call]

    def arrive(self, what: str) -> None:
        """Wait until all processes are here; see `noether_jax.arrivals`."""
        self._arrivals.arrive(what)

    def all_reduce_sum(self, values: Vector) -> Vector:
        """Return the sum of the processes' vectors."""
        return self._reduced("sum", values)

    def all_reduce_max(self, values: Vector) -> Vector:
        """Return the greatest of the processes' vectors, element by element."""
        return self._reduced("max", values)

    def all_gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of each process, on each of them."""
        lengths = np.zeros(self.count, np.int64)
        lengths[self.index] = len(data)
        lengths = self.all_reduce_sum(lengths)
        longest = int(lengths.max())
        parts: list[list[bytes]] = [[] for _ in range(self.count)]
        for start in range(0, longest, _PIECE):
            piece = np.frombuffer(data[start : start + _PIECE], np.uint8)
            rows = self._call("gather", piece, min(_PIECE, longest - start))
            for part, row, length in zip(parts, rows, lengths.tolist(), strict=True):
                part.append(row[: max(0, length - start)].tobytes())
        return [b"".join(part) for part in parts]

    def gather_to_main(self, data: bytes) -> list[bytes] | None:
        """Return the bytes of each process on the main one.

        They go through the coordination service: XLA's collectives would give everything to every process.
        """
        lengths = np.zeros(self.count, np.int64)
        lengths[self.index] = len(data)
        lengths = self.all_reduce_sum(lengths)
        self._gathers += 1
        place = f"{self._name}/gather/{self._gathers}"
        parts: list[list[bytes]] = [[] for _ in range(self.count)]
        for start in range(0, int(lengths.max()), _PIECE):
            if self.index:
                if start < len(data):
                    self._client.key_value_set_bytes(f"{place}/{start}/{self.index}", data[start : start + _PIECE])
                    self._waited(0, self._client.blocking_key_value_get, f"{place}/taken/{start}")
                continue
            for process in range(1, self.count):
                if start < lengths[process]:
                    get = self._client.blocking_key_value_get_bytes
                    parts[process].append(self._waited(process, get, f"{place}/{start}/{process}"))
            self._client.key_value_delete(f"{place}/{start}/")
            self._client.key_value_set(f"{place}/taken/{start}", "")
        if self.index:
            return None
        return [data, *map(b"".join, parts[1:])]

    def _waited(self, process: int, get: Callable[[str, int], Any], key: str) -> Any:
        try:
            return get(key, round(self._time_limit * 1000))
        except Exception as error:
            raise ProcessesMissingError(
                f"process {process} was there, and did not go on within {self._time_limit:g} s when what the processes have was"
                " gathered: see whether it still runs; where it may take longer, give a greater time_limit",
                (process,),
            ) from error

    def close(self) -> None:
        """Do nothing: the service and the devices are JAX's."""

    def _reduced(self, name: str, values: Vector) -> Vector:
        found: Vector = self._call(name, np.asarray(values, np.int64), len(values))
        return found[: len(values)]

    def _call(self, name: str, values: Vector, length: int) -> Vector:
        """Return what a collective gives of the processes' vectors, padded with zeros to a power of two."""
        size = 1 << max(length - 1, 0).bit_length()
        row = np.zeros((1, size), values.dtype)
        row[0, : len(values)] = values
        with ours(), jax.disable_jit(False):
            local = jax.device_put(row, self._device)
            whole = jax.make_array_from_single_device_arrays((self.count, size), self._rows, [local])
            found = self._function(name, size, whole)(whole)
            return np.array(found.addressable_data(0))

    def _function(self, name: str, size: int, like: Any) -> Callable[[Any], Any]:
        """Return a compiled collective: once compiled, it asks for none of what the user sets."""
        known = self._compiled.get((name, size))
        if known is None:
            with jax.set_mesh(self._mesh):
                known = jax.jit(_COLLECTIVES[name], out_shardings=self._everywhere).lower(like).compile()
            self._compiled[name, size] = known
        return known


_COLLECTIVES: dict[str, Callable[[Any], Any]] = {
    "sum": partial(jnp.sum, axis=0),
    "max": partial(jnp.max, axis=0),
    "gather": lambda rows: rows,
}
