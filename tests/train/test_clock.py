import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from train.clock import Clock

whole = st.integers(1, 10_000)


@given(batch=whole, total=whole, every=whole)
def test_events_come_once_for_each_multiple_passed_and_at_the_end(batch: int, total: int, every: int) -> None:
    clock = Clock(batch, total, 100)
    events = 0
    for _ in range(min(200, -(-total // batch))):
        before = clock.examples
        foreseen = clock.passing(every)
        clock.tick()
        assert clock.passed(every) == foreseen
        multiple_inside = any(m % every == 0 for m in (before + 1 + (-before - 1) % every,) if m <= clock.examples)
        assert clock.passed(every) == (multiple_inside or clock.finished)
        events += clock.passed(every)
    if clock.finished:
        assert events >= 1


@given(batch=whole, total=whole)
def test_a_run_ends_after_the_first_whole_step_that_covers_it(batch: int, total: int) -> None:
    clock = Clock(batch, total, 100)
    assert total <= clock.total_examples < total + batch
    clock.examples = clock.total_examples - batch
    assert clock.progress < 1
    clock.tick()
    assert clock.finished
    assert clock.step * batch == clock.examples


def test_epochs_are_passes_over_the_training_part() -> None:
    clock = Clock(10, 1000, 40)
    clock.examples = 100
    assert clock.epoch == 2.5


def test_wall_time_adds_up_over_processes() -> None:
    first = Clock(10, 100, 50, earlier_s=100.0)
    second = Clock(10, 100, 50)
    second.load_state_dict({"examples": 30, "wall_s": first.wall_s, "batch": 10})
    assert second.examples == 30
    assert second.step == 3
    assert 100.0 <= second.wall_s < 160.0


def test_steps_of_another_size_do_not_go_on() -> None:
    with pytest.raises(UserError, match=r"is of batches of 10, and .* make batches of 9 in so many processes"):
        Clock(9, 100, 50).load_state_dict(Clock(10, 100, 50).state_dict())
