"""Be one process of several: `python -m tests.jax_workers WHAT INDEX COUNT PORT`."""

import itertools
import os
import signal
import sys
import threading
import time

import jax
import numpy as np
from jax._src import distributed
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.errors import ProcessesMissingError, UpdateOutputError
from noether_core.reduce.accumulate import OutputAccumulator
from noether_jax.backend import BACKEND

LIMIT = 6.0


def say(*words):
    print("SAID", *words, flush=True)


def exchange_of(index, count, port, devices=2):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index, shutdown_timeout_seconds=10)
    # starting takes longer than the limit on a busy machine
    distributed.global_state.client.wait_at_barrier("all have started", 120_000)
    exchange = BACKEND.exchange(LIMIT)
    exchange.arrive("start")
    return exchange


def check(exchange, length, seed):
    index, count = exchange.index, exchange.count
    vectors = [np.random.default_rng([seed, at]).integers(-(2**63), 2**63 - 1, length) for at in range(count)]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(exchange.all_reduce_sum(vectors[index]), np.sum(vectors, axis=0))
    np.testing.assert_array_equal(exchange.all_reduce_max(vectors[index]), np.max(vectors, axis=0))


def collectives(exchange):
    local = jax.local_devices()
    settings = [
        lambda: jax.transfer_guard("disallow"),
        lambda: jax.set_mesh(jax.make_mesh((len(jax.devices()),), ("user",))),
        lambda: jax.set_mesh(jax.make_mesh((2,), ("user",), devices=local)),
        lambda: jax.default_device(local[1]),
        lambda: jax.enable_x64(True),
        jax.disable_jit,
    ]
    for at, setting in enumerate(settings):
        for length in (1, 2**at * 7):  # each setting compiles once
            with setting():
                exchange.arrive("a test")
                check(exchange, length, at)
    check(exchange, 0, 0)
    for length in (0, 1, 5000, 2_500_000):
        given = [bytes([at]) * (length * (at + 1) // 2) for at in range(exchange.count)]
        assert exchange.all_gather(given[exchange.index]) == given
        assert exchange.gather_to_main(given[exchange.index]) == (None if exchange.index else given)
    exchange.close()


def stopped(exchange, at, rounds):
    """Let one process be stopped, and go on, before it arrives where the others fail at `rounds` arrivals."""
    if exchange.index == at:
        went_on = threading.Event()
        signal.signal(signal.SIGCONT, lambda *_: went_on.set())
    say("ready")
    if exchange.index == at:
        while not went_on.wait(0.05):  # the signal may come to another thread, which does not wake this one
            pass
    for number in range(rounds):
        start = time.monotonic()
        try:
            exchange.arrive(f"round {number}")
            say("met", number)
        except ProcessesMissingError as error:
            say(
                "missing" if f"round {number}" in str(error) else error,
                number,
                error.missing,
                round(time.monotonic() - start, 2),
            )
    for number in range(6):  # one is enough, but on a busy machine; the verdict is one for all, so all make as many
        start = time.monotonic()
        try:
            exchange.arrive("the end")
            check(exchange, 3, number)
            say("went on")
            break
        except ProcessesMissingError as error:
            say("again", error.missing, round(time.monotonic() - start, 2))
    say("done")
    signal.pause()  # until all are done: JAX ends the others with the first


def shardings(count, seed, ndim):
    rng = np.random.default_rng(seed)
    devices = np.array(jax.devices())
    if rng.integers(2):
        devices = rng.permutation(devices)
    total = len(devices)
    shape = [(total,), (2, total // 2), (total // 2, 2)][rng.integers(3)]
    kinds = [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit]
    mesh = Mesh(devices.reshape(shape), ("a", "b")[: len(shape)], axis_types=(kinds[rng.integers(2)],) * len(shape))
    names = [None, *mesh.axis_names, *([("a", "b"), ("b", "a")] if len(shape) == 2 else [])]
    specs = [
        spec
        for spec in itertools.product(names, repeat=ndim)
        if len(used := [name for part in spec for name in (part if isinstance(part, tuple) else (part,)) if name])
        == len(set(used))
    ]
    return NamedSharding(mesh, PartitionSpec(*specs[rng.integers(len(specs))]))


def global_arrays(exchange, cases):
    fields = {"kind": "TrackAdditionalOutputsCallback", "every_n_updates": 1, "keys": ["x"]}
    for seed in range(cases):
        rng = np.random.default_rng([seed, 1])
        ndim, weighted = int(rng.integers(0, 4)), bool(rng.integers(2))
        total = len(jax.devices())
        array = rng.integers(-1000, 1000, [int(rng.integers(1, 4)) * total for _ in range(ndim)]).astype(np.float32)
        sharding = shardings(exchange.count, seed, ndim)
        made = jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        config = TrackAdditionalOutputsCallbackConfig(**fields, reduce="mean", **({"weight": "w"} if weighted else {}))
        interval = OutputAccumulator(BACKEND, config)
        weight = (made if rng.integers(2) else np.float32(3)) if weighted else None
        interval.add(("x",), (made,), 1, 0, weight)
        partials = interval.partials()
        part = [0, 0]
        if partials.keys:
            sums = partials.statistics.weighted if weighted else partials.statistics.total
            part = [int(partials.elements[0]), int(sum(float(each[0]) for each in sums))]
        found = exchange.all_reduce_sum(np.array(part, np.int64)).tolist()
        exact = array.astype(np.int64)
        factor = 1 if weight is None else exact if weight is made else 3
        assert found == [array.size, int((exact * factor).sum())], (seed, sharding, array.shape, found)
        check_kept(
            exchange,
            TrackAdditionalOutputsCallbackConfig(**fields, reduce="last", log_output=False, save_output=True),
            made,
            array,
        )
    say("right", cases)


def check_kept(exchange, config, made, array):
    """Check that the whole value is kept in one process, or refused in all."""
    interval = OutputAccumulator(BACKEND, config)
    refused, kept = 0, 0
    try:
        interval.add(("x",), (made,), 1, 0)
        last = interval.partials().last
        kept = len(last)
        for newest in last.values():
            np.testing.assert_array_equal(newest.value, array)
    except UpdateOutputError as error:
        refused = int("sharded over processes" in str(error))
    total = exchange.all_reduce_sum(np.array([refused, kept], np.int64)).tolist()
    assert total in ([exchange.count, 0], [0, 1]), total


def main():
    what, index, count, port, *more = sys.argv[1:]
    exchange = exchange_of(int(index), int(count), port)
    globals()[what](exchange, *map(int, more))
    say("done")
    sys.stdout.flush()
    if what == "stopped":
        os._exit(0)  # JAX's own shutdown would wait for who was killed


if __name__ == "__main__":
    main()
