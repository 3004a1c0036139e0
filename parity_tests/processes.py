"""Run drawn trainings in real processes of torch.distributed and jax.distributed, many one after the other.

`python -m parity_tests.processes` is what each of these processes runs: a command a line, an answer a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PATIENCE = 120.0  # seconds for an answer, on a busy machine
TIME_LIMIT = 30.0  # of a run


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Group:
    """Hold the processes of one group; `with` ends them.

    Args:
        front_end: `torch` or `jax`.
        count: how many.
    """

    def __init__(self, front_end: str, count: int) -> None:
        self.front_end, self.count = front_end, count
        root = Path(__file__).parents[1]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
        environment |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        environment["RES_OPTIONS"] = (
            "timeout:1 attempts:1"  # torch's store asks for its clients' names, and waits for that
        )
        command = [sys.executable, "-m", "parity_tests.processes", front_end, str(count), str(free_port())]
        self._files = contextlib.ExitStack()
        folder = Path(self._files.enter_context(tempfile.TemporaryDirectory(prefix="noether-processes-")))
        self.errors = [self._files.enter_context((folder / str(index)).open("w+")) for index in range(count)]
        self.processes = [
            subprocess.Popen(
                [*command, str(index)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                cwd=root,
            )
            for index, errors in enumerate(self.errors)
        ]
        self._answers: list[queue.Queue[str]] = [queue.Queue() for _ in range(count)]
        for process, answers in zip(self.processes, self._answers, strict=True):
            threading.Thread(target=_read, args=(process, answers), daemon=True).start()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill them."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):  # of what it was told and did not read
                    pipe.close()
        self._files.close()

    def tell(self, index: int, **words: Any) -> None:
        pipe = self.processes[index].stdin
        assert pipe is not None
        pipe.write(json.dumps(words) + "\n")
        pipe.flush()

    def answer(self, index: int, patience: float = PATIENCE) -> dict[str, Any]:
        """Return the next answer of a process."""
        try:
            line = self._answers[index].get(timeout=patience)
        except queue.Empty:
            line = ""
        if not line:
            self.errors[index].seek(0)
            raise AssertionError(
                f"process {index} of {self.count} ({self.front_end}) gave no answer in {patience:g} s:\n"
                + self.errors[index].read()[-4000:]
            )
        found: dict[str, Any] = json.loads(line)
        return found

    def tell_all(self, indices: Iterable[int] | None = None, **words: Any) -> None:
        """Tell each of some processes; None: all."""
        for index in range(self.count) if indices is None else indices:
            self.tell(index, **words)

    def answers(self, indices: Iterable[int] | None = None) -> list[dict[str, Any]]:
        """Return the next answer of each of some processes."""
        return [self.answer(index) for index in (range(self.count) if indices is None else indices)]

    def each(self, source: str, indices: Iterable[int] | None = None) -> list[dict[str, Any]]:
        """Return what each of some processes answers to a source that it is to execute: `value`, or what was raised."""
        indices = [*range(self.count)] if indices is None else [*indices]
        self.tell_all(indices, source=source)
        return self.answers(indices)

    def values(self, source: str, indices: Iterable[int] | None = None) -> list[Any]:
        """Return `value` of each, none of which may raise."""
        answers = self.each(source, indices)
        assert not any("error" in answer for answer in answers), answers
        return [answer["value"] for answer in answers]

    def send_signal(self, index: int, number: signal.Signals) -> None:
        self.processes[index].send_signal(number)


def _read(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(line)
    answers.put("")


# ---------------------------------------------------------------------- in a process


def start(front_end: str, count: int, port: int, index: int) -> Any:
    """Join the group, and return the front-end's `Run`."""
    if front_end == "torch":
        import datetime as dt

        import torch.distributed

        import noether_torch

        torch.set_num_threads(1)
        limit = dt.timedelta(seconds=PATIENCE)
        address = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", init_method=address, rank=index, world_size=count, timeout=limit)
        return noether_torch.Run
    import jax

    import noether_jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index, initialization_timeout=int(PATIENCE))
    return noether_jax.Run


def train(run_class: Any, count: int, index: int, *, seed: int, kind: str, path: str) -> list[str]:
    """Make this process's part of a drawn training, and return what was warned of."""
    from parity_tests.drawn_trainings import draw, run_steps

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_steps(run_class, draw(seed, kind, count), Path(path), index, time_limit=TIME_LIMIT)
    return [str(each.message) for each in caught]


def serve(front_end: str, count: int, port: int, index: int) -> None:
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    run_class = start(front_end, count, port, index)
    names: dict[str, Any] = {"Run": run_class, "index": index, "count": count}
    for line in sys.stdin:
        words, began = json.loads(line), time.monotonic()
        try:
            if "source" in words:
                names["value"] = None
                exec(words["source"], names)
                said: dict[str, Any] = {"value": names["value"]}
            else:
                said = {"told": train(run_class, count, index, **words)}
        except BaseException as error:
            missing = getattr(error, "missing", None)
            said = {"error": "".join(traceback.format_exception(error)), "text": str(error), "missing": missing}
        print(json.dumps(said | {"seconds": time.monotonic() - began}), file=answers, flush=True)
    os._exit(0)  # the frameworks' own ends wait for each other


if __name__ == "__main__":
    serve(sys.argv[1], *map(int, sys.argv[2:]))
