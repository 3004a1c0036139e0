from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noether_core import Interval, NoetherError, ScheduleError, TrainingIteration, UpdateCounter
from noether_core.schedule import UNITS, Unit

counts = st.none() | st.integers(0, 10**12)
iterations = st.builds(TrainingIteration, counts, counts, counts).filter(str)


def count_updates(counter: UpdateCounter, updates: int) -> None:
    for _ in range(updates):
        counter.add_samples(counter.effective_batch_size)
        counter.next_update()
        if counter.is_full_epoch:
            counter.next_epoch()


# ---------------------------------------------------------------------- TrainingIteration


@pytest.mark.parametrize(
    ("text", "iteration"),
    [
        ("E1_U20_S640", TrainingIteration(1, 20, 640)),
        ("E1_U20", TrainingIteration(epoch=1, update=20)),
        ("E1_S640", TrainingIteration(epoch=1, sample=640)),
        ("U20_S640", TrainingIteration(update=20, sample=640)),
        ("E0", TrainingIteration(epoch=0)),
        ("U20", TrainingIteration(update=20)),
        ("S640", TrainingIteration(sample=640)),
    ],
)
def test_an_iteration_is_read_from_its_string(text: str, iteration: TrainingIteration) -> None:
    assert TrainingIteration.from_string(text) == iteration
    assert str(iteration) == text


@given(iterations)
def test_every_iteration_comes_back_from_its_string(iteration: TrainingIteration) -> None:
    assert TrainingIteration.from_string(str(iteration)) == iteration


@pytest.mark.parametrize(
    "text", ["", "E", "1", "E1U20", "U20_E1", "E1_", "E1__U2", "e1", "E-1", "E1.5", "E1 ", "E1\n", "X1", "E1_E2", "E²"]
)
def test_text_of_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        TrainingIteration.from_string(text)
    assert repr(text) in str(caught.value)
    assert "'E1_U20_S640'" in str(caught.value)


@pytest.mark.parametrize("value", [1.0, "1", True, [1]])
@pytest.mark.parametrize("unit", UNITS)
def test_a_count_that_is_no_int_is_refused(unit: Unit, value: Any) -> None:
    with pytest.raises(ScheduleError, match=rf"got {unit}=.*expected an int"):
        TrainingIteration(**{unit: value})


@given(iterations)
def test_fully_and_minimally_specified_count_the_given_fields(iteration: TrainingIteration) -> None:
    given_fields = len(str(iteration).split("_"))
    assert iteration.is_fully_specified == (given_fields == 3)
    assert iteration.is_minimally_specified == (given_fields == 1)


def test_an_empty_iteration_is_neither_and_cannot_be_completed() -> None:
    empty = TrainingIteration()
    assert not empty.is_fully_specified
    assert not empty.is_minimally_specified
    with pytest.raises(ScheduleError, match=r"without epoch, update or sample.*give one of them"):
        empty.to_fully_specified(10, 4)


def test_an_iteration_cannot_be_changed_and_its_copy_is_equal() -> None:
    iteration = TrainingIteration(1, 2, 3)
    assert iteration.copy() == iteration
    assert iteration.copy() is not iteration
    with pytest.raises(dataclasses.FrozenInstanceError):
        iteration.update = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given_iteration", "full"),
    [
        ("E2", "E2_U20_S80"),
        ("U20", "E2_U20_S80"),
        ("U25", "E2_U25_S100"),
        ("S80", "E2_U20_S80"),
        ("S81", "E2_U21_S81"),
        ("S79", "E2_U20_S79"),
        ("E0", "E0_U0_S0"),
        ("U0", "E0_U0_S0"),
        ("S0", "E0_U0_S0"),
        ("E2_U20", "E2_U20_S80"),
        ("E1_U15_S60", "E1_U15_S60"),
        ("E1_U15_S57", "E1_U15_S57"),
    ],
)
def test_what_is_not_given_follows_from_what_is(given_iteration: str, full: str) -> None:
    assert str(TrainingIteration.from_string(given_iteration).to_fully_specified(10, 4)) == full


@given(st.integers(0, 60), st.integers(1, 7), st.integers(1, 9))
def test_completing_gives_what_counting_gives(updates: int, updates_per_epoch: int, batch: int) -> None:
    counter = UpdateCounter(None, None, updates_per_epoch, batch)
    count_updates(counter, updates)
    reached = counter.cur_iteration
    assert TrainingIteration(update=updates).to_fully_specified(updates_per_epoch, batch) == reached
    assert TrainingIteration(sample=reached.sample).to_fully_specified(updates_per_epoch, batch) == reached
    if updates % updates_per_epoch == 0:
        assert TrainingIteration(epoch=reached.epoch).to_fully_specified(updates_per_epoch, batch) == reached


def test_epochs_need_updates_per_epoch_and_zero_epochs_do_not() -> None:
    with pytest.raises(ScheduleError, match=r"E2 counts epochs, but updates_per_epoch is None.*count in updates"):
        TrainingIteration(epoch=2).to_fully_specified(None, 4)
    assert str(TrainingIteration(epoch=0).to_fully_specified(None, 4)) == "E0_U0_S0"
    assert str(TrainingIteration(update=7).to_fully_specified(None, 4)) == "E0_U7_S28"


@given(st.integers(0, 50), st.integers(0, 50), st.sampled_from(UNITS))
def test_one_field_orders_as_its_number_does(a: int, b: int, unit: Unit) -> None:
    first, second = TrainingIteration(**{unit: a}), TrainingIteration(**{unit: b})
    assert (first < second, first <= second, first > second, first >= second, first == second) == (
        a < b,
        a <= b,
        a > b,
        a >= b,
        a == b,
    )


def test_several_fields_order_when_they_agree() -> None:
    early, late = TrainingIteration(1, 10, 40), TrainingIteration(1, 12, 48)
    assert early < late
    assert late > early
    assert early <= early.copy()
    assert not early < early.copy()
    with pytest.raises(ScheduleError, match="E1_U10_S40 and E0_U12_S48: one field is ahead, another behind"):
        assert early < TrainingIteration(0, 12, 48)


@pytest.mark.parametrize(
    "operate",
    [lambda a, b: a < b, lambda a, b: a <= b, lambda a, b: a > b, lambda a, b: a >= b, lambda a, b: a + b,
     lambda a, b: a - b],
    ids=["<", "<=", ">", ">=", "+", "-"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("a", "b", "shown"),
    [
        (TrainingIteration(epoch=1), TrainingIteration(update=1), "'E1' and 'U1'"),
        (TrainingIteration(update=1), TrainingIteration(1, 1, 1), "'U1' and 'E1_U1_S1'"),
        (TrainingIteration(update=1), TrainingIteration(), "'U1' and 'an empty iteration'"),
        (TrainingIteration(), TrainingIteration(), "'an empty iteration' and 'an empty iteration'"),
    ],
)
def test_iterations_of_other_fields_are_refused(
    operate: Any, a: TrainingIteration, b: TrainingIteration, shown: str
) -> None:
    with pytest.raises(ScheduleError) as caught:
        operate(a, b)
    assert shown in str(caught.value)
    assert "complete them with to_fully_specified first" in str(caught.value)


@given(st.tuples(*[st.integers(0, 1000)] * 3), st.tuples(*[st.integers(0, 1000)] * 3))
def test_a_sum_adds_each_field_and_a_difference_undoes_it(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    total = TrainingIteration(*a) + TrainingIteration(*b)
    assert total == TrainingIteration(*(x + y for x, y in zip(a, b, strict=True)))
    assert total - TrainingIteration(*b) == TrainingIteration(*a)


def test_a_difference_may_be_negative() -> None:
    assert TrainingIteration(update=3) - TrainingIteration(update=5) == TrainingIteration(update=-2)


# ---------------------------------------------------------------------- UpdateCounter


def test_a_counter_counts_epochs_updates_and_samples() -> None:
    counter = UpdateCounter(None, TrainingIteration(epoch=2), updates_per_epoch=3, effective_batch_size=4)
    seen = []
    while not counter.is_finished:
        count_updates(counter, 1)
        assert counter.cur_iteration == TrainingIteration(counter.epoch, counter.update, counter.sample)
        seen.append((str(counter.cur_iteration), counter.is_full_epoch))
    assert seen == [
        ("E0_U1_S4", False),
        ("E0_U2_S8", False),
        ("E1_U3_S12", True),
        ("E1_U4_S16", False),
        ("E1_U5_S20", False),
        ("E2_U6_S24", True),
    ]
    assert counter.end_iteration == TrainingIteration(2, 6, 24)


def test_each_count_moves_alone() -> None:
    counter = UpdateCounter(updates_per_epoch=5, effective_batch_size=8)
    counter.add_samples(3)
    assert str(counter.cur_iteration) == "E0_U0_S3"
    counter.next_update()
    assert str(counter.cur_iteration) == "E0_U1_S3"
    counter.next_epoch()
    assert str(counter.cur_iteration) == "E1_U1_S3"


def test_an_iteration_that_was_read_does_not_move_with_the_counter() -> None:
    counter = UpdateCounter()
    before = counter.cur_iteration
    counter.next_update()
    assert before == TrainingIteration(0, 0, 0)


@pytest.mark.parametrize(
    ("end", "updates"),
    [
        (TrainingIteration(epoch=2), 6),
        (TrainingIteration(update=4), 4),
        (TrainingIteration(sample=12), 3),
        (TrainingIteration(sample=13), 4),
        (TrainingIteration(update=0), 0),
    ],
)
def test_training_is_finished_at_the_update_that_reaches_the_end(end: TrainingIteration, updates: int) -> None:
    counter = UpdateCounter(None, end, updates_per_epoch=3, effective_batch_size=4)
    for update in range(8):
        assert counter.is_finished == (update >= updates)
        count_updates(counter, 1)


def test_a_counter_without_an_end_is_never_finished() -> None:
    counter = UpdateCounter(updates_per_epoch=1)
    count_updates(counter, 100)
    assert not counter.is_finished
    assert counter.end_iteration is None


def test_a_counter_goes_on_from_the_middle_of_an_epoch() -> None:
    counter = UpdateCounter(TrainingIteration(update=5), None, updates_per_epoch=3, effective_batch_size=4)
    assert str(counter.cur_iteration) == "E1_U5_S20"
    count_updates(counter, 1)
    assert str(counter.cur_iteration) == "E2_U6_S24"


def test_epoch_as_float_has_the_fraction_of_the_epoch_under_way() -> None:
    counter = UpdateCounter(updates_per_epoch=4)
    fractions = []
    for _ in range(6):
        fractions.append(counter.epoch_as_float)
        count_updates(counter, 1)
    assert fractions == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]


def test_without_epochs_there_is_no_full_epoch_and_no_epoch_as_float() -> None:
    counter = UpdateCounter()
    count_updates(counter, 3)
    assert not counter.is_full_epoch
    assert counter.epoch == 0
    with pytest.raises(ScheduleError, match=r"epoch_as_float needs updates_per_epoch"):
        counter.epoch_as_float  # noqa: B018


@pytest.mark.parametrize("value", [0, -1, 1.0, "3", True])
@pytest.mark.parametrize("name", ["updates_per_epoch", "effective_batch_size"])
def test_a_counter_refuses_what_is_no_positive_int(name: str, value: Any) -> None:
    with pytest.raises(ScheduleError) as caught:
        UpdateCounter(**{name: value})
    assert f"{name}={value!r}; expected an int of at least 1" in str(caught.value)
    assert isinstance(caught.value, NoetherError)
    assert isinstance(caught.value, ValueError)


def test_a_counter_whose_end_is_in_epochs_needs_updates_per_epoch() -> None:
    with pytest.raises(ScheduleError, match="E2 counts epochs, but updates_per_epoch is None"):
        UpdateCounter(None, TrainingIteration(epoch=2))


# ---------------------------------------------------------------------- Interval


@pytest.mark.parametrize(
    ("interval", "short", "verbose"),
    [
        (Interval("epoch", 2), "E2", "every_n_epochs=2"),
        (Interval("update", 10), "U10", "every_n_updates=10"),
        (Interval("sample", 512), "S512", "every_n_samples=512"),
    ],
)
def test_an_interval_has_a_short_and_a_verbose_string(interval: Interval, short: str, verbose: str) -> None:
    assert (str(interval), interval.verbose) == (short, verbose)


@given(st.integers(0, 200), st.integers(0, 60), st.integers(1, 50), st.sampled_from(UNITS))
def test_an_interval_ends_where_a_multiple_lies(before: int, step: int, n: int, unit: Unit) -> None:
    now = before + step
    passed = [count for count in range(before + 1, now + 1) if count % n == 0]
    assert Interval(unit, n).ends_between(before, now) == bool(passed)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=50), st.integers(1, 60))
def test_a_walk_of_any_steps_ends_each_interval_it_crosses_once(steps: list[int], n: int) -> None:
    interval, at, ends = Interval("sample", n), 0, []
    for step in steps:
        if interval.ends_between(at, at + step):
            ends.append((at + step) // n)
        at += step
    multiples = [count // n for count in range(1, at + 1) if count % n == 0]
    assert ends == sorted(set(ends))
    assert all(any(end >= multiple for end in ends) for multiple in multiples)
    assert set(ends) <= set(multiples)
