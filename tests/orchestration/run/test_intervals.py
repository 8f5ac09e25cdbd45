import time
import warnings

import numpy as np
import pytest

from orchestration.run.intervals import Interval, bootstrap_difference, bootstrap_mean


def test_interval_of_a_proportion_is_the_normal_one_for_many_values() -> None:
    values = [True] * 120 + [False] * 280  # p = 0.3, standard error sqrt(0.3 * 0.7 / 400) = 0.0229
    interval = bootstrap_mean(values, seed=0)
    assert interval.estimate == pytest.approx(0.3)
    assert interval.low == pytest.approx(0.3 - 1.96 * 0.0229, abs=0.004)
    assert interval.high == pytest.approx(0.3 + 1.96 * 0.0229, abs=0.004)


def test_the_interval_is_that_of_means_of_values_drawn_with_replacement() -> None:
    values = np.array([0.0, 0.0, 1.0, 2.5, -1.0, 4.0, 0.5])
    ours = bootstrap_mean(list(values), seed=1)
    drawn = np.random.default_rng(2).choice(values, size=(40_000, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert ours.low == pytest.approx(low, abs=0.05)
    assert ours.high == pytest.approx(high, abs=0.05)


@pytest.mark.parametrize("values", [[1.0], [0.0], [False], [0.1] * 3, [True] * 200])
def test_equal_values_have_an_interval_without_width_and_without_a_warning(values: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = bootstrap_mean(values, seed=0)
    assert interval.low == interval.estimate == interval.high == pytest.approx(float(values[0]))


def test_pairing_removes_what_both_measurements_share() -> None:
    # 200 problems, half of them always right: 40 go from wrong to right, none the other way
    before = [True] * 100 + [False] * 100
    after = [True] * 140 + [False] * 60
    paired = bootstrap_difference(before, after, seed=0)
    assert paired.estimate == pytest.approx(0.2)
    # the differences are Bernoulli(0.2): standard error sqrt(0.2 * 0.8 / 200) = 0.0283; unpaired it would be 0.0479
    assert paired.high - paired.low == pytest.approx(2 * 1.96 * 0.0283, abs=0.01)
    assert paired.low > 0


def test_no_change_does_not_exclude_zero() -> None:
    before = [i % 3 == 0 for i in range(90)]
    after = [i % 3 == 1 for i in range(90)]
    interval = bootstrap_difference(before, after, seed=0)
    assert interval.estimate == 0.0
    assert interval.low < 0 < interval.high


def test_loss_is_a_negative_difference() -> None:
    assert bootstrap_difference([1.0] * 50, [0.0] * 50, seed=0) == Interval(estimate=-1.0, low=-1.0, high=-1.0)


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    values = [float(i) for i in range(30)]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_all_of_gsm8k_in_well_under_a_second_of_work() -> None:
    started = time.process_time()
    bootstrap_difference([i % 3 == 0 for i in range(1319)], [i % 2 == 0 for i in range(1319)], seed=0)
    bootstrap_mean([float(i) for i in range(1319)], seed=0)
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "at least one value"), ([1.0, float("nan")], "finite values, got nan"), ([float("inf")], "got inf")],
)
def test_values_that_have_no_interval(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values, seed=0)


def test_different_numbers_of_problems() -> None:
    with pytest.raises(ValueError, match="2 before, 1 after"):
        bootstrap_difference([True, False], [True], seed=0)
