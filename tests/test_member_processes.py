"""What each of two real processes counts of what a compiled step carried: together, everything once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("member_processes.py")
VALUES = [[number + 10 * step for number in range(8)] for step in range(3)]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[float]]]:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(port), str(index), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        printed = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
    return [json.loads(next(line for line in text.splitlines() if line.startswith("{"))) for text in printed]


@pytest.mark.parametrize("way", ["shards", "crossed", "all", "replicated"])
def test_the_processes_count_everything_once(way: str, counted: list[dict[str, list[float]]]) -> None:
    of_two, of_all = (VALUES[:2], VALUES)
    wanted = [sum(map(sum, of_two)), 16, sum(map(sum, of_all)), 24]
    assert [sum(pair) for pair in zip(*(each[way] for each in counted), strict=True)] == wanted


def test_copies_are_counted_by_one_process_and_rows_where_they_lie(counted: list[dict[str, list[float]]]) -> None:
    for way, counts in [("shards", [8, 8]), ("crossed", [16, 0]), ("all", [8, 8]), ("replicated", [16, 0])]:
        assert [each[way][1] for each in counted] == counts
