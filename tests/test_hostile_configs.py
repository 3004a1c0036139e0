"""A config from a stranger: whatever is in it, it is loaded or refused at once, with one kind of error and a short message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import noether_torch
from noether_core import ConfigFileError, NoetherError, TrackAdditionalOutputsCallbackConfig
from noether_core.config.load import load_callbacks, parse_callback
from noether_core.config.yaml_file import with_checksum

ENTRY = "callbacks: [{every_n_updates: 1, keys: [loss]"
LAUGHS = "\n".join(["a0: &a0 [lol, lol]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))])
WIDE = "x: &x " + "y" * 100_000 + "\nz: [" + ", ".join(["*x"] * 5000) + "]\n"
ESCAPE = '"\\e]0;owned\\a\\u202e\\u009b31m"'


def refused(text: str | bytes, tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    with pytest.raises((ConfigFileError, ValidationError)) as caught:
        load_callbacks(path)
    message = str(caught.value)
    assert len(message) < 12_000
    assert all(char.isprintable() or char == "\n" for char in message), repr(message)
    return message


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        (f"{LAUGHS}\ncallbacks: *a11", ["holds too much", "write it out plainly"]),
        (f"{LAUGHS}\ncallbacks: [*a11]", ["holds too much"]),
        (f"{LAUGHS}\n{ENTRY}, missing: *a11}}]", ["holds too much"]),
        (f"{WIDE}callbacks: 3", ["holds too much"]),
        ("callbacks: &a [*a]", ["&a, that contains itself"]),
        ("callbacks: &a {x: [1, {y: *a}]}", ["&a, that contains itself"]),
        ("[" * 200_000, ["nested more than 50 deep"]),
        ("callbacks: " + "[" * 60 + "]" * 60, ["nested more than 50 deep"]),
        ("- " * 5000 + "x", ["nested more than 50 deep"]),
        ("{a: " * 3000, ["nested more than 50 deep"]),
        ("callbacks: [2001-99-99]", ["not valid YAML", "ValueError"]),
        ("callbacks: [2001-01-01 99:99:99]", ["not valid YAML"]),
        ("callbacks: [!!timestamp x]", ["not valid YAML"]),
        ("callbacks: [!!int x]", ["not valid YAML", "ValueError"]),
        ("callbacks: [!!bool x]", ["not valid YAML"]),
        ("callbacks: [!!float x]", ["not valid YAML"]),
        ("callbacks: [!!binary x]", ["not valid YAML"]),
        ("callbacks: [!!python/object/apply:os.system [ls]]", ["not valid YAML", "could not determine a constructor"]),
        ("callbacks: [!mine x]", ["not valid YAML", "!mine"]),
        ("callbacks: {[a]: 1}", ["callbacks"]),
        ("callbacks: {{a: 1}: 1}", ["not valid YAML", "unhashable"]),
        ("callbacks: []\ncallbacks: []", ["the key 'callbacks' is there twice"]),
        (f"{ENTRY}, keys: [b]}}]", ["the key 'keys' is there twice"]),
        (f"callbacks: [{'9' * 10_000}]", ["not valid YAML", "4300 digits"]),
        (f"callbacks: [{{every_n_updates: {'9' * 4000}, keys: [a]}}]", ["expected at most 9223372036854775807"]),
        (f"{ENTRY}, id: {'i' * 300}}}]", ["more than 255 bytes"]),
        (f"{ENTRY}, id: {'ü' * 130}}}]", ["more than 255 bytes"]),
        (f'{ENTRY}, id: "a\\uD800"}}]', [""]),
        (f"{ENTRY}, self: 1}}]", ["'self' is no field"]),
        (f"{ENTRY}, {ESCAPE}: 1}}]", ["is no field", "\\x1b]0;owned\\x07"]),
        (f"{ENTRY}, missing: {ESCAPE}}}]", ["\\x1b"]),
        (f"{ENTRY}, id: {ESCAPE[:-1]}/\"}}]", ["\\x1b"]),
        (f"{ENTRY}, id: {ESCAPE}}}]", ["\\x1b", "names a folder"]),
        (f"callbacks: [{{kind: {ESCAPE}}}]", ["\\x1b", "known here"]),
        (f"callbacks: [{ESCAPE}]", ["\\x1b", "expected a mapping"]),
        (f"{ESCAPE}: 1", ["\\x1b", "no `callbacks:` list"]),
        (f"callbacks: [{{keys: {ESCAPE}}}]", ["\\x1b"]),
        (f"callbacks: ['{'x' * 500_000}']", ["expected a mapping"]),
        (f"{ENTRY}, ? {'x' * 500_000} : 1}}]", ["is no field"]),
        (f"callbacks: [{{every_n_updates: 1, keys: [{'1, ' * 20_000}]}}]", ["keys.0", "there is more that is wrong"]),
        ('{"callbacks": [{"keys": "\\ud800\\udc00"}]}', ["write a list"]),
        (f"? {'x' * 500_000}\n: 1", ["no `callbacks:` list"]),
        (b"#" * 2**20 + b"\n", ["more than 1,048,576 bytes"]),
        (b"\x1b]0;owned\x07: 1", ["not valid YAML"]),
    ],
    ids=lambda value: f"{value!s:.40}" if isinstance(value, str) else "",
)  # fmt: skip
def test_it_is_refused_at_once_in_few_words(text: str | bytes, phrases: list[str], tmp_path: Path) -> None:
    message = refused(text, tmp_path)
    assert [phrase for phrase in phrases if phrase not in message] == [], message


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), 10**4000])
def test_numbers_that_no_interval_can_be_are_refused(value: Any) -> None:
    for name in ("every_n_updates", "batch_size"):
        with pytest.raises(ValidationError):
            TrackAdditionalOutputsCallbackConfig(**{"every_n_updates": 1, "keys": ["a"], name: value})
    with pytest.raises(ValidationError):
        parse_callback(
            {
                "kind": "MetricEarlyStopCallback",
                "every_n_updates": 1,
                "source_metric_key": "a",
                "higher_is_better": True,
                "patience": 1,
                "min_delta": value,
            }
        )


def test_an_id_with_half_of_a_surrogate_pair_is_refused_before_training() -> None:
    with pytest.raises(ValidationError, match="expected a valid string"):
        TrackAdditionalOutputsCallbackConfig(every_n_updates=1, keys=["a"], id="\ud800")


@pytest.mark.parametrize("identity", ["i" * 255, "ü" * 127])
def test_the_longest_id_trains(identity: str, tmp_path: Path) -> None:
    config = {"every_n_updates": 1, "keys": ["loss"], "id": identity, "save_output": True}
    with noether_torch.Run(tmp_path, [config]) as run:
        run.step({"loss": 1.0})
    assert len(list((tmp_path / "update_outputs" / identity).rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("kind", ["fifo", "device", "directory"])
def test_what_is_no_file_does_not_hang(kind: str, tmp_path: Path) -> None:
    import os

    path = Path("/dev/zero") if kind == "device" else tmp_path / "config.yaml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(ConfigFileError, match="only regular files are read"):
        load_callbacks(path)


def test_what_a_run_wrote_says_when_one_bit_of_it_is_flipped(tmp_path: Path, full: bool) -> None:
    config = {"every_n_updates": 10, "keys": ["loss"], "patterns": ["grad/"], "reduce": ["mean", "std"], "id": "mine"}
    with noether_torch.Run(tmp_path, [config]):
        pass
    path = tmp_path / "config.yaml"
    data = path.read_bytes()
    (expected,) = load_callbacks(path)
    for bit in range(0, 8 * len(data), 1 if full else 23):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert "config.yaml" in refused(bytes(flipped), tmp_path)
    path.write_bytes(data.split(b"\n", 1)[1].replace(b"every_n_updates: 10", b"every_n_updates: 20"))
    assert load_callbacks(path) == [expected.model_copy(update={"every_n_updates": 20})]  # edited, on purpose


def test_a_config_without_a_checksum_is_read_as_before(tmp_path: Path) -> None:
    text = ENTRY.encode() + b"}]\n"
    for data in (text, b"# crc32 is the name of an output\n" + text, with_checksum(text)):
        (tmp_path / "c.yaml").write_bytes(data)
        assert len(load_callbacks(tmp_path / "c.yaml")) == 1


def test_a_config_that_would_not_be_read_back_is_refused_when_the_run_starts(tmp_path: Path) -> None:
    keys = [f"layer_{number}/gradient_norm/of_the_weights" for number in range(30_000)]
    run = noether_torch.Run(tmp_path, [{"every_n_updates": 1, "keys": keys}], processes=1)
    with pytest.raises(NoetherError, match="at most 1,048,576 are read back; name keys by `patterns`"):
        run.start()
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize(
    ("one", "other"),
    [("Foo", "foo"), ("\u00e9", "e\u0301"), ("STRASSE", "stra\u00dfe"), ("mine", "mine. "), ("\u212b", "\u00c5")],
)
def test_two_ids_that_are_one_folder_on_some_disks_are_refused_where_they_would_mix_files(
    one: str, other: str, tmp_path: Path
) -> None:
    def configs(**fields: object) -> list[dict[str, object]]:
        return [
            {"every_n_updates": 1, "keys": [f"k{at}"], "id": each, **fields} for at, each in enumerate((one, other))
        ]

    with pytest.raises(NoetherError) as caught:
        noether_torch.Run(tmp_path, configs(save_output=True))
    assert f"ids {one!r} and {other!r}, one name on some disks, would write the same files" in str(caught.value)
    for free in (configs(), [{**each, "every_n_updates": at + 1} for at, each in enumerate(configs(save_output=True))]):
        with noether_torch.Run(tmp_path, free) as run:
            run.step({"k0": 0.0, "k1": 1.0})
