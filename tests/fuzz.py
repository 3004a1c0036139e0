"""Give every reader files that are damaged or made up, for so many seconds: `python -m tests.fuzz 1200`.

hypothesis draws the files: bytes of real ones changed, with the checksums made right again or not, and made-up lines, headers,
records and YAML. A failure is any exception that is none of ours, a file that takes longer than `MOST_SECONDS`, memory above
`MOST_MEMORY` on top of the libraries', and any character in a message that could steer a terminal. Exits 1, and says the seed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from noether_core import NoetherError, read_run
from noether_core.callbacks.record_outputs import read_recording
from noether_core.config.load import load_callbacks, load_tracking
from noether_core.config.yaml_file import with_checksum
from noether_core.emit.arrays import check_arrays, read_arrays, read_headers
from noether_core.emit.capsule import read_capsule
from noether_core.emit.export.tables import csv_parts
from noether_core.emit.record_file import encode_record
from noether_core.emit.state_file import read_state
from noether_core.emit.unmerged import find_unmerged, read_unmerged
from noether_core.explanation import explain_together, render
from noether_core.inspect.capsule import show_capsule
from noether_core.inspect.example import read_outputs
from noether_core.inspect.show import show_run
from noether_core.names import read_mapping
from noether_core.parity.check import check_run
from tests.fuzzed_probes import ARRAYS as PROBED_ARRAYS
from tests.fuzzed_probes import STATISTICS, compare_and_draw, drawn_probes, make_probed, read_probes

MOST_SECONDS = 30  # for one file
MOST_MEMORY = 2**30  # bytes, beyond what the libraries take

# ------------------------------------------------------------------ what is read, and how


def inert(text: object) -> None:
    strange = [char for char in str(text) if not char.isprintable() and char != "\n"]
    assert not strange, f"{strange[:5]} in {str(text)[:300]!r}"
    assert len(str(text)) < 50_000


@contextlib.contextmanager
def ours() -> Iterator[None]:
    try:
        yield
    except (NoetherError, ValidationError, FileNotFoundError) as error:
        inert(error)


def printed(screen: Any) -> None:
    console = Console(file=io.StringIO(), width=160)
    console.print(screen)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(char.isprintable() or char == "\n" for char in text)


def is_drawn(file: Path, one_in: int) -> bool:
    """Tell whether a file is among those that are also read in a slower way."""
    return zlib.crc32(file.read_bytes()) % one_in == 0


def read_a_run(path: Path, file: Path) -> None:
    with ours():
        run = read_run(path)
        for problem in run.problems:
            inert(problem)
        for entry in run.iter_entries():
            assert type(entry["update"]) is int
        for _ in csv_parts(run.table):
            pass
        if is_drawn(file, 16):
            printed(show_run(run))
    with ours():
        if not is_drawn(file, 4):
            return
        report = check_run(path)
        for line in report.lines():
            inert(line)
        json.dumps(report.as_json())


def read_array_file(path: Path, file: Path) -> None:
    problems: list[str] = []
    for read in (
        lambda: read_arrays(file),
        lambda: read_arrays(file, problems),
        lambda: read_headers(file),
        lambda: check_arrays(file),
    ):
        with ours():
            read()
    for problem in problems:
        assert "\x1b" not in repr(problem)
    read_a_run(path, file)


def read_capsule_file(path: Path, file: Path) -> None:
    with ours():
        capsule = read_capsule(file)
        for problem in capsule.problems:
            inert(problem)
        json.dumps(capsule.as_json())
        printed(show_capsule(capsule))
    with ours():
        if is_drawn(file, 8):
            check_run(path)


def read_config(path: Path, file: Path) -> None:
    for read in (load_callbacks, load_tracking, read_mapping, lambda file: read_outputs(file.with_suffix(".yaml"))):
        with ours():
            read(file)
    with ours():
        printed(render(explain_together(load_callbacks(file), {"loss": (), "a/b": (3,)}), {"loss": ()}))
    with ours():
        check_run(path)


def read_example(path: Path, file: Path) -> None:
    with ours():
        read_outputs(file)


def read_unmerged_file(path: Path, file: Path) -> None:
    with ours():
        read_unmerged(file)
    with ours():
        check_run(path)


def read_with_strangers(path: Path, file: Path) -> None:
    """Put what a list says into the run directory, under names of its own, read the run, and take it away."""
    made = []
    try:
        for part, name, kind in json.loads(file.read_bytes()):
            made.append(path / part / name)
            with contextlib.suppress(OSError, ValueError):  # a name that no file can have, or one that is there
                MAKERS[kind](made[-1])
        read_a_run(path, file)
        with ours():
            find_unmerged(path)
    finally:
        for each in reversed(made):
            with contextlib.suppress(OSError, ValueError):
                if each.is_symlink() or each.stat().st_size == 3 or not each.is_file():
                    each.rmdir() if each.is_dir() and not each.is_symlink() else each.unlink()


def read_probe_file(path: Path, file: Path) -> None:
    path, other = path.with_name("probed"), path.with_name("intact")
    with ours():
        for problem in read_probes(path).problems:
            inert(problem)
    with ours():
        for text in compare_and_draw(path, other, path.with_name("page.html")) if is_drawn(file, 4) else ():
            inert(text)
    with ours():
        if is_drawn(file, 16):
            printed(show_run(read_run(path)))
            check_run(path)


MAKERS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.open("xb").write(b"abc"),
    "fifo": os.mkfifo,
    "directory": os.mkdir,
    "link": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere"),
}

TARGETS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "lines": ("run/metrics/1.jsonl", read_a_run),
    "beside": ("run/metrics/2.time.jsonl", read_a_run),
    "merged": ("run/metrics/3.merged.jsonl", read_a_run),
    "record": ("run/starts/2.json", read_a_run),
    "arrays": ("run/update_outputs/U2/E0_U2_S2.safetensors", read_array_file),
    "config": ("run/config.yaml", read_config),
    "example": ("outputs.json", read_example),
    "unmerged": ("run/unmerged/0-of-2.safetensors", read_unmerged_file),
    "state": ("state", lambda _, file: read_state(file)),
    "strangers": ("strangers.json", read_with_strangers),
    "recording": ("recording", lambda _, file: list(read_recording(file))),
    "capsule": ("run/capsules/E0_U16_S16-0.capsule", read_capsule_file),
    "statistics": (f"probed/{STATISTICS}", read_probe_file),
    "probed arrays": (f"probed/{PROBED_ARRAYS}", read_probe_file),
}

# ------------------------------------------------------------------ made-up files

TOKENS = [
    *(b"\n", b"\r", b"\0", b"\x1b]0;x\x07", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xae", b"{", b"}", b"[", b"]", b'"', b","),
    *(b'"update":', b'"crc32":"', b'"arrays":"../x"', b'{"', b"9" * 5000, b"1e999", b"-", b"NaN", b"null", b"true"),
    *(b"&a ", b"*a", b"<<: ", b"!!python/name:os.system ", b"!!timestamp ", b"2001-99-99", b"? ", b"- ", b": "),
    *(b"%YAML 9.9\n---\n", b"[" * 2000, b"{" * 2000),
    *(b'"dtype":"F64"', b'"shape":[4294967296,4294967296]', b'"data_offsets":[0,99999999999]', b"__metadata__", b"\n" * 5000),
]  # fmt: skip
NAMES = st.sampled_from(
    [
        "epoch",
        "update",
        "sample",
        "loss/U2",
        "times",
        "arrays",
        "provisional",
        "since",
        "missing",
        "crc32",
        "id",
        "parent",
    ]
) | st.text(st.characters(), max_size=8)
NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([2**63, -(2**63) - 1, 10**400, 10**4299, -1, 0, 1, 2, 3, float("nan"), -0.0])
)
TEXTS = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["NaN", "update_outputs/U2/E0_U2_S2.safetensors", "../x", "\x1b[31m", "=1+1", "update_outputs/..", "E0_U2_S2"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def with_crc(body: bytes) -> bytes:
    return b'%s,"crc32":"%08x"}\n' % (body, zlib.crc32(body))


def line_of(value: Any) -> bytes:
    return with_crc(json.dumps(value).encode()[:-1])


ENTRY = st.builds(
    lambda units, values: {**units, **values},
    st.fixed_dictionaries({}, optional=dict.fromkeys(("epoch", "update", "sample"), st.integers(0, 20) | VALUES)),
    st.dictionaries(NAMES, VALUES, max_size=4),
)
LINES = st.lists(st.builds(line_of, ENTRY) | st.binary(max_size=20) | st.sampled_from(TOKENS), max_size=12).map(
    b"".join
)
RECORDS = st.builds(
    lambda record, is_checked: encode_record(record) if is_checked else json.dumps(record).encode(),
    st.fixed_dictionaries(
        {}, optional={"id": VALUES, "parent": VALUES, "iteration": VALUES | ENTRY, "ancestors": VALUES, "since": VALUES}
    ),
    st.booleans(),
)
SIZES = st.integers(-1, 16) | st.sampled_from([2**31, 2**62, 2**64, 10**30]) | VALUES
PLACES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F64", "BOOL", "BF16", "F8_E8M0", "C64", "U8"]) | VALUES,
        "shape": st.lists(SIZES, max_size=70),
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | VALUES,
    },
)


def array_file(header: Any, data: bytes, length: int | None) -> bytes:
    document = json.dumps(header).encode()
    return (len(document) if length is None else length).to_bytes(8, "little") + document + data


ARRAYS = st.builds(
    array_file,
    st.dictionaries(
        NAMES | st.sampled_from(["__metadata__", "accumulation_steps", "00000000/0000a/x"]), PLACES | VALUES
    ),
    st.binary(max_size=64),
    st.none() | st.integers(0, 2**64 - 1),
)
YAML = (
    st.lists(st.sampled_from([token.decode("utf-8", "replace") for token in TOKENS]) | TEXTS, max_size=12).map(" ".join)
    | st.builds(lambda value: json.dumps({"callbacks": value}), VALUES | st.lists(ENTRY))
    | st.builds(
        lambda fields: json.dumps({"callbacks": [fields]}),
        st.dictionaries(
            st.sampled_from(
                ["kind", "id", "keys", "patterns", "every_n_updates", "every_n_epochs", "reduce", "weight", "self"]
            )
            | NAMES,
            VALUES | st.lists(TEXTS),
        ),
    )
).map(lambda text: text.encode("utf-8", "surrogatepass"))
JSON = VALUES.map(lambda value: json.dumps(value).encode()) | st.dictionaries(NAMES, VALUES).map(
    lambda value: json.dumps(value).encode()
)
STEPS = st.lists(st.lists(st.integers(-1, 9), min_size=1, max_size=3) | VALUES, max_size=4)
CAPSULES = st.lists(
    st.builds(
        line_of,
        st.fixed_dictionaries(
            {
                "key": TEXTS | VALUES,
                "callback": st.integers(-1, 3) | VALUES,
                "steps": STEPS,
                "values": st.lists(VALUES, max_size=4),
            }
        )
        | st.builds(
            lambda fields: {"capsule": 1, **fields},
            st.dictionaries(
                st.sampled_from(
                    ["reason", "iteration", "accumulation_step", "time", "versions", "notes", "config", "host"]
                ),
                VALUES
                | st.dictionaries(st.sampled_from(["kind", "message", "traceback", "epoch", "update"]), VALUES | TEXTS),
            ),
        )
        | st.fixed_dictionaries({name: st.integers() | VALUES for name in ("keys", "left_out", "most")}),
    )
    | LINES,
    max_size=8,
).map(b"".join)
STRANGERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["", "metrics", "starts", "update_outputs", "update_outputs/U2", "superseded/2", "unmerged", "capsules"]
        ),
        st.builds(
            "".join, st.lists(st.sampled_from([*"0123456789", ".", "jsonl", "E0_U", "_S", "time"]) | TEXTS, max_size=5)
        )
        | st.sampled_from(
            [f"{n}{end}" for n in (1, 2, 7, "01", "٣", "9" * 200) for end in (".jsonl", ".time.jsonl", ".json")]
        )
        | st.sampled_from(
            [
                "1.capsule",
                "E0_U3_S3.safetensors",
                f"U{'9' * 200}.safetensors",
                "U.safetensors",
                "1-of-2.safetensors",
                "a.tmp",
            ]
        ),
        st.sampled_from([*MAKERS]),
    ),
    max_size=6,
).map(
    lambda made: json.dumps([each for each in made if each[1] and "/" not in each[1] and "\0" not in each[1]]).encode()
)
MADE_UP: dict[str, st.SearchStrategy[bytes]] = {
    "lines": LINES,
    "beside": LINES,
    "merged": LINES,
    "record": RECORDS,
    "arrays": ARRAYS,
    "unmerged": ARRAYS,
    "state": ARRAYS,
    "recording": ARRAYS,
    "capsule": CAPSULES,
    "config": YAML | YAML.map(with_checksum),
    "example": JSON,
    "strangers": STRANGERS,
    "statistics": ARRAYS,
    "probed arrays": ARRAYS,
}


def changed(data: bytes, changes: list[tuple[str, float, float, bytes]], is_mended: bool) -> bytes:
    """Return a file with changes made at places that are given as parts of its length; its checksums then right, or not."""
    for how, first, second, token in changes:
        at, other = int(first * len(data)), int(second * len(data))
        low, high = min(at, other), max(at, other)
        if how == "flip" and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << int(second * 7)]) + data[at + 1 :]
        elif how == "insert":
            data = data[:at] + token + data[at:]
        elif how == "delete":
            data = data[:low] + data[high:]
        elif how == "repeat":
            data = data[:high] + data[low:high][:4096] * 3 + data[high:]
        elif how == "many":
            data = data[:at] + token * 200 + data[at:]
        elif how == "cut":
            data = data[:at]
    return mended(data) if is_mended else data


def mended(data: bytes) -> bytes:
    """Return lines, a record or a config with their CRCs made right; an array file's header with its length."""
    if data.startswith(b"# noether"):
        return with_checksum(data.partition(b"\n")[2])
    if data[1:4] == b"\0\0\0" or data[4:8] == b"\0\0\0\0":
        end = data.rfind(b"]}}") + 3
        return max(0, end - 8).to_bytes(8, "little") + data[8:]
    lines = re.split(rb',\s*"crc32":\s*"[^"\n]*"\s*\}\n?', data)
    if data.startswith(b"{\n"):
        return b'%s,\n "crc32": "%08x"\n}\n' % (lines[0], zlib.crc32(lines[0]))
    return b"".join(map(with_crc, lines[:-1])) + lines[-1]


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "insert", "delete", "repeat", "many", "cut"]),
        st.floats(0, 1),
        st.floats(0, 1),
        st.sampled_from(TOKENS) | st.binary(max_size=6),
    ),
    min_size=1,
    max_size=5,
)

# ------------------------------------------------------------------ the loop


def fuzz(directory: Path, seconds: float, first_seed: int, examples: int = 100) -> int:
    """Read drawn files until the time is over; return how many there were. A file that fails stays in the directory."""
    end, count, number = time.monotonic() + seconds, 0, first_seed
    originals = {name: (directory / place).read_bytes() for name, (place, _) in TARGETS.items()}
    probed = {name: drawn_probes(read_arrays(directory / TARGETS[name][0])) for name in ("statistics", "probed arrays")}
    while time.monotonic() < end:
        for name, (place, read) in TARGETS.items():
            drawn = MADE_UP[name] | probed.get(name, st.nothing())
            if name != "strangers":
                drawn |= st.builds(changed, st.just(originals[name]), CHANGES, st.booleans())
            (directory / "case").write_text(f"{name} with seed {number}: {directory / place}")
            count += read_all(directory, directory / place, read, drawn, number, examples)
            (directory / place).write_bytes(originals[name])
            number += 1
            if time.monotonic() > end:
                break
    return count


def read_all(
    directory: Path,
    file: Path,
    read: Callable[[Path, Path], object],
    drawn: st.SearchStrategy[bytes],
    number: int,
    examples: int,
) -> int:
    """Read so many drawn files in the place of one."""
    count = 0

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(drawn)
    def one(data: bytes) -> None:
        nonlocal count
        file.write_bytes(data)
        count += 1
        signal.alarm(MOST_SECONDS)  # ends this process, whatever it is in
        with ours():
            read(directory / "run", file)
        signal.alarm(0)

    one()
    return count


def bounded(directory: Path, seconds: float, first_seed: int) -> None:
    """Fuzz in this process, with bounded memory."""
    sizes = Path("/proc/self/statm").read_text().split()
    most = int(sizes[0]) * os.sysconf("SC_PAGE_SIZE") + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    print(fuzz(directory, seconds, first_seed), "files", flush=True)


def main(seconds: float, first_seed: int) -> int:
    """Make the files, and fuzz in a process of its own; return its exit status."""
    sys.path.insert(0, str(Path(__file__).parent))
    from damaged_runs import make_run

    directory = Path(tempfile.mkdtemp(prefix="fuzz_"))
    make_run(directory / "run")
    log = (directory / "run" / "metrics" / "3.jsonl").read_bytes()
    (directory / "run" / "metrics" / "3.merged.jsonl").write_bytes(log)
    for name in ("probed", "intact"):
        make_probed(directory / name)
    (directory / "strangers.json").write_text("[]")
    (directory / "outputs.json").write_text('{"loss": 0.5, "a": {"shape": [3, 4]}, "b": [[1, 2], [3, 4]]}')
    command = [sys.executable, __file__, "--bounded", str(directory), str(seconds), str(first_seed)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"}
    status = subprocess.run(command, check=False, env=environment, cwd=Path(__file__).parents[1]).returncode
    if status:
        print(f"failed with {status}: {(directory / 'case').read_text()}")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--bounded":
        bounded(Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(2**30)))
