"""Say which tests and commands show what a run survives, fault by fault: the rows of `docs/reliability.md`."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """Say what to run beside tests, as `python -m`.

    Attributes:
        arguments: at the full size.
        small: in small.
        size: a pattern of what it prints about its size.
    """

    arguments: str
    small: str
    size: str


class Row(NamedTuple):
    """Say what shows that a fault is survived.

    Attributes:
        fault: what is injected.
        holds: what must be so then; each test asserts its part.
        tests: as `tests/test_x.py`, or of it `::name` and `::other`.
        commands: each of which exits with 0.
    """

    fault: str
    holds: str
    tests: tuple[str, ...]
    commands: tuple[Command, ...] = ()


ROWS = {
    "1": Row(
        "kill: SIGKILL at random moments, and inside a write",
        "every entry that is flushed longer ago than `durability` says is read back, no torn line is taken as data, and a"
        " resumed run is the uninterrupted one, entries and arrays",
        ("tests/test_kill.py", "tests/test_killed_and_resumed.py"),
    ),
    "2": Row(
        "torn tail, then append: the last three lines cut at every byte",
        "only the torn line is dropped, and reported; the next line is not fused with it",
        ("tests/test_disk.py::test_a_tail_torn_at_any_byte_costs_its_line_alone_and_the_run_goes_on",),
    ),
    "3": Row(
        "bit rot: bits flipped in all files of a run",
        "each is an error or a problem with file and offset, neighbours are kept, no wrong value is given out",
        (
            "tests/test_bit_rot.py",
            "tests/test_arrays.py::test_every_flip_of_one_bit_is_named_and_costs_no_more_than_the_array_it_is_in",
        ),
    ),
    "4": Row(
        "restart from an older checkpoint, three times over",
        "each key once an update, from the newest attempt; the older rows are kept, and superseded",
        (
            "tests/test_restarts_from_older.py",
            "tests/test_starts.py::test_any_history_reads_back_as_its_last_line_of_descent",
            "tests/test_lost_notes.py",
            "parity_tests/test_histories.py",
        ),
    ),
    "5": Row(
        "processes that track other keys, in another order, or none",
        "no hang, exact values, and the number of processes that a key is of is said",
        (
            "parity_tests/test_other_keys.py",
            "tests/test_processes.py::test_other_keys_orders_dtypes_and_updates",
            "tests/test_processes.py::test_one_warning_names_keys_and_processes",
            "tests/test_processes.py::test_a_key_that_fewer_processes_have_later_is_told_of_with_how_many",
        ),
    ),
    "6": Row(
        "unequal numbers of steps and elements",
        "the pooled mean, to the bit",
        ("parity_tests/test_processes.py::test_processes_log_what_one_would", "tests/test_pool.py"),
    ),
    "7": Row(
        "a process stopped or killed at an interval's end",
        "the others wait no longer than the limit, 30 s by default, name the process and the keys, and keep what all had on"
        " disk, of which `merge` makes what one process would have logged",
        (
            "tests/test_default_time_limit.py",
            "tests/test_process_faults.py",
            "tests/test_torch_processes.py",
            "tests/test_jax_processes.py",
        ),
    ),
    "8": Row(
        "NaN and infinities: every dtype, reduction and policy",
        "strict JSON, in which the three are told apart; the first bad step is located",
        (
            "tests/test_nonfinite_grid.py",
            "tests/test_nonfinite_places.py",
            "tests/test_missing_and_nonfinite.py",
            "tests/test_jsonl.py::test_a_value_that_json_lacks_is_written_as_its_name",
        ),
    ),
    "9": Row(
        "hostile keys",
        "nothing outside of the run directory, names come back as they were, inert in terminal and pictures",
        (
            "tests/test_hostile_keys.py",
            "tests/test_hostile_runs.py::test_a_hostile_key_stays_in_the_directory_in_every_export",
            "tests/test_hostile_runs.py::test_no_escape_of_a_file_reaches_the_terminal",
            "tests/test_poison.py::test_any_name_of_an_array_reads_back",
        ),
    ),
    "10": Row(
        "malicious artefacts: pickles, giant headers, zip bombs, links, devices",
        "nothing unpickles, everything is bounded, the error is clear",
        (
            "tests/test_malicious_files.py",
            "tests/test_hostile_runs.py",
            "tests/test_hostile_configs.py",
            "tests/test_capsule.py",
        ),
    ),
    "11": Row(
        "a full disk, and space again",
        "training goes on, one warning, what is lost is marked, logging recovers",
        (
            "tests/test_disk.py::test_a_disk_that_is_full_for_a_while_costs_one_warning",
            "tests/test_disk.py::test_a_disk_that_fails_to_the_end_is_warned_about_and_stops_nothing",
            "tests/test_full_disk.py",
        ),
    ),
    "12": Row(
        "a slow disk: stalls in write and fsync",
        "the training thread's 99th percentile is below 1 ms, the queue is bounded, what it drops is counted",
        (
            "tests/test_disk.py::test_training_goes_on_while_the_disk_stalls",
            "tests/test_disk.py::test_files_that_meet_a_full_queue_are_dropped_counted_and_marked",
            "tests/test_disk.py::test_lines_that_meet_a_full_queue_are_dropped_counted_and_marked",
        ),
        (
            Command("benchmarks.stalled_disk 5", "benchmarks.stalled_disk 1", r"stalled: (\d+ steps)"),
            Command("benchmarks.stalled_disk 60", "benchmarks.stalled_disk 1", r"stalled: (\d+ steps)"),
        ),
    ),
    "13": Row(
        "a tracker that raises or locks",
        "the other trackers and the log are whole, and `export` refills what it missed",
        ("tests/test_tracker_thread.py", "tests/test_raising_trackers.py"),
    ),
    "14": Row(
        "memory: 10,000 steps of one interval with large fields, and 10,000 intervals",
        "what is held on device and host does not grow",
        ("tests/test_memory.py", "tests/test_memory_of_intervals.py"),
    ),
    "15": Row(
        "aliasing: changes in place, donated buffers, views",
        "what is tracked is what it was at the call; no large array is kept alive",
        (
            "tests/test_taken_at_the_call.py",
            "tests/test_by_reference.py",
            "tests/test_memory.py::test_a_view_keeps_no_tensor_alive",
            "tests/test_memory.py::test_a_view_keeps_no_numpy_array_alive",
            "tests/test_memory.py::test_a_jax_array_is_not_kept_alive",
            "tests/test_memory.py::test_a_compiled_steps_output_is_taken_at_the_call_in_every_mode",
        ),
    ),
    "16": Row(
        "eight processes",
        "one writes, and each tracker has one run",
        (
            "tests/test_eight_writers.py",
            "tests/test_writer_lock.py::test_of_eight_processes_that_write_at_once_one_does",
            "tests/test_writer_lock.py::test_a_training_of_several_processes_has_one_writer",
        ),
    ),
    "17": Row(
        "a reader while the run writes",
        "no exception, and only a growing prefix",
        (
            "tests/test_reader.py::test_a_run_can_be_read_while_it_is_written",
            "tests/test_check.py::test_a_run_that_is_being_written_is_checked_without_an_exception",
        ),
    ),
    "18": Row(
        "the program's end: `sys.exit`, an exception, Ctrl-C twice, SIGTERM",
        "all is in the files within 2 s, and the error to see is the program's own",
        ("tests/test_ends.py", "tests/test_end_times.py", "tests/test_tracker_endings.py"),
    ),
    "19": Row(
        "each I/O call fails once, with EIO, ENOSPC, or half of a write done",
        "training goes on, nothing torn is taken as data, and what waits is written when the disk takes it",
        (
            "tests/test_disk.py::test_every_call_may_fail_once_and_costs_nothing",
            "tests/test_disk.py::test_any_calls_may_fail_for_a_while_and_cost_nothing",
            "tests/test_disk.py::test_in_several_processes_too_any_call_may_fail",
        ),
    ),
    "20": Row(
        "Ctrl-C at every line that a step, a save and a load execute",
        "what was under way counts wholly or not at all: nothing wrong, lost or doubled",
        ("tests/test_interrupts.py", "tests/test_signals.py"),
    ),
    "21": Row(
        "drawn files for every reader, for 20 minutes",
        "no foreign exception, no hang, no memory above 1 GiB",
        ("tests/test_fuzz.py",),
        (Command("tests.fuzz 1200 13", "tests.fuzz 4 13", r"(\d+ files)"),),
    ),
    "22": Row(
        "states that are damaged, or of something else; values and keys that a file cannot hold",
        "taken whole or refused with nothing changed, at no other's cost",
        ("tests/test_broken_states.py", "tests/test_poison.py", "tests/test_misused_states.py"),
    ),
}
