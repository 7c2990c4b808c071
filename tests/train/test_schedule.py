import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.clock import Clock
from train.schedule import SCHEDULES, learning_rate

share = st.floats(0, 1)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@given(progress=share, warmup=st.floats(0, 0.9))
def test_a_rate_lies_between_nothing_and_the_peak(schedule: str, progress: float, warmup: float) -> None:
    assert 0 <= learning_rate(progress, schedule=schedule, peak=3.0, warmup_frac=warmup) <= 3.0


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@given(warmup=st.floats(0.01, 0.9))
def test_the_peak_is_reached_when_the_warm_up_ends(schedule: str, warmup: float) -> None:
    assert learning_rate(warmup, schedule=schedule, peak=3.0, warmup_frac=warmup) == 3.0
    # Below the end it climbs in a straight line; 1e-12 covers the rounding of two products.
    half = learning_rate(warmup / 2, schedule=schedule, peak=3.0, warmup_frac=warmup)
    assert half == pytest.approx(1.5, rel=1e-12)


def test_schedules_have_their_known_values() -> None:
    def at(schedule: str, progress: float) -> float:
        return learning_rate(progress, schedule=schedule, peak=1.0, warmup_frac=0.0)

    assert [at("constant", p) for p in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]
    assert [at("linear", p) for p in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]
    assert [at("cosine", p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-15)
    assert [at("steps", p) for p in (0.0, 0.33, 0.34, 0.66, 0.67, 0.88, 0.89, 1.0)] == pytest.approx(
        [1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_the_rate_summed_over_examples_does_not_depend_on_the_batch(schedule: str) -> None:
    def total(batch: int) -> float:
        clock, rates = Clock(batch, 6400, 100), 0.0
        while not clock.finished:
            rates += batch * learning_rate(clock.progress, schedule=schedule, peak=1.0, warmup_frac=0.25)
            clock.tick()
        return rates

    # The midpoint rule is exact on straight lines; on a cosine over 100 steps its relative error is below 1e-3. A drop
    # in the middle of one of 100 steps is half a step off.
    drops = schedule in ("steps", "incv", "mlnt", "rsl")
    assert total(64) == pytest.approx(total(16), rel=2e-2 if drops else 1e-3)
