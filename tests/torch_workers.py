"""Run real processes of one torch.distributed group, and tell each what to do: the tests stop, kill and continue them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PATIENCE = 60  # seconds for what should take one, on a busy machine

# One process imports torch, then forks the workers of each group. A worker executes the source that it is sent, and answers
# with `value` as JSON, or with the error.
SERVER = """
import datetime, json, os, socket, sys, time
import numpy as np
import torch
import torch.distributed as dist
from noether_torch.processes import group_exchange

def work(rank, count, path):
    parent = socket.socket(socket.AF_UNIX)
    parent.connect(path)
    talk = parent.makefile("rw")
    def say(**words):
        print(json.dumps(words), file=talk, flush=True)
    def init(store, **options):
        limit = datetime.timedelta(seconds=60)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=limit, **options)
    say(rank=rank, pid=os.getpid())
    names = dict(globals(), rank=rank, count=count, init=init)
    for line in talk:
        source = json.loads(line)
        started = time.monotonic()
        names["value"] = None
        try:
            exec(source, names)
            words = dict(value=names["value"])
        except SystemExit:
            raise
        except BaseException as error:
            missing = getattr(error, "missing", None)
            words = dict(error=type(error).__name__, text=str(error), missing=missing)
        say(seconds=time.monotonic() - started, **words)

print("ready", flush=True)
for line in sys.stdin:
    words = json.loads(line)
    if "count" in words:
        for rank in range(words["count"]):
            if os.fork() == 0:
                work(rank, words["count"], words["path"])
                sys.exit()
    else:
        done, end = 0, time.monotonic() + 30
        while done == 0 and time.monotonic() < end:
            done, status = os.waitpid(words["wait"], os.WNOHANG)
            time.sleep(0.01)
        print(status if done else "still running", flush=True)
"""


class Server:
    """Hold the process that forks the workers."""

    def __init__(self) -> None:
        environment = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
        # a TCPStore looks up the name of whoever connects; a name server that does not answer stops it for so long
        environment["RES_OPTIONS"] = "timeout:1 attempts:1"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, **words: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        try:
            self.process.communicate(timeout=PATIENCE)  # it ends when its input does
        finally:
            self.process.kill()


class Workers:
    """Hold the processes of one group; `with` kills them in the end."""

    def __init__(self, server: Server, count: int, folder: Path) -> None:
        self.server, self.count = server, count
        path = f"/tmp/noether-{os.getpid()}-{folder.name[-40:]}.sock"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.settimeout(PATIENCE)
            listening.bind(path)
            listening.listen(count)
            server.tell(count=count, path=path)
            self.sockets, self.pids, self.files = {}, {}, {}
            for _ in range(count):
                connection, _ = listening.accept()
                connection.settimeout(PATIENCE)
                file = connection.makefile("rw")
                words = json.loads(file.readline())
                rank = words["rank"]
                self.sockets[rank], self.pids[rank], self.files[rank] = connection, words["pid"], file
        Path(path).unlink()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in list(self.pids):
            self.kill(rank)
        for rank, connection in self.sockets.items():
            self.files[rank].close()
            connection.close()

    def connect(self, time_limit: float = 2.5, store: str = "") -> None:
        """Initialize torch.distributed, with rank 0's TCPStore unless another is given, and make an exchange in each."""
        if not store:
            make = "dist.TCPStore('127.0.0.1', PORT, is_master=rank == 0, wait_for_workers=False)"
            store = make.replace(
                "PORT", str(self.values(f"store = {make.replace('PORT', '0')}; value = store.port", [0])[0])
            )
        self.values(f"if 'store' not in globals(): store = {store}\ninit(store)")
        self.values(f"exchange = group_exchange(time_limit={time_limit})")

    def send(self, ranks: Iterable[int], source: str) -> None:
        for rank in ranks:
            print(json.dumps(source), file=self.files[rank], flush=True)

    def answers(self, ranks: Iterable[int]) -> list[dict[str, Any]]:
        return [json.loads(self.files[rank].readline()) for rank in ranks]

    def each(self, source: str, ranks: Iterable[int] | None = None) -> list[dict[str, Any]]:
        """Return what each answers to the source."""
        ranks = sorted(self.pids if ranks is None else ranks)
        self.send(ranks, source)
        return self.answers(ranks)

    def values(self, source: str, ranks: Iterable[int] | None = None) -> list[Any]:
        answers = self.each(source, ranks)
        assert all("error" not in answer for answer in answers), answers
        return [answer["value"] for answer in answers]

    def stop(self, rank: int) -> None:
        os.kill(self.pids[rank], signal.SIGSTOP)

    def go_on(self, rank: int) -> None:
        os.kill(self.pids[rank], signal.SIGCONT)

    def kill(self, rank: int) -> None:
        pid = self.pids.pop(rank)
        os.kill(pid, signal.SIGKILL)
        self.status(pid)

    def exit(self, rank: int) -> str:
        """Return the exit status of a worker that is told to end."""
        self.send([rank], "raise SystemExit")
        return self.status(self.pids.pop(rank))

    def status(self, pid: int) -> str:
        self.server.tell(wait=pid)
        return self.server.read()
