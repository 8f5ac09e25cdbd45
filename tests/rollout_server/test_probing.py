"""The judgement behind the probe of a publish."""

from __future__ import annotations

import math
import pickle
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rollout_server import errors
from rollout_server.errors import AdapterMismatchError, StaleAdapterError
from rollout_server.publishing.probing import Gap, check_agreement, check_base, check_not_stale, gap, limit_after
from rollout_server.types import AdapterProbe

BASE = (-1.2, -2.1, -2.9)
PREVIOUS = (-1.0, -2.0, -3.0)
TRAINED = (-1.1, -1.9, -3.2)


def probe(trained=TRAINED, previous=PREVIOUS, tolerance=0.5) -> AdapterProbe:
    return AdapterProbe(
        version=8,
        training_logprobs=trained,
        base_training_logprobs=BASE,
        previous_training_logprobs=previous,
        tolerance=tolerance,
    )


def judge(served, served_before, probe, *, same=False) -> None:
    check_not_stale(served, served_before, probe, same=same, worker="rollout-1", version=8, previous_version=7)


def moved(values, by) -> tuple[float, ...]:
    return tuple(value + by for value in values)


def test_a_gap_is_a_root_mean_square_and_a_largest_difference():
    assert gap((0.0, 0.0), (3.0, -4.0)) == Gap(pytest.approx(math.sqrt(12.5)), 4.0)
    assert gap((0.0, math.nan), (0.0, 0.0)) == Gap(math.inf, math.inf)


def test_limits_follow_the_gap_of_the_base_between_a_third_and_all_of_the_tolerance():
    for base, limit in (
        (None, (0.15, 0.5)),
        (Gap(0.0, 0.0), (0.05, 0.5 / 3)),
        (Gap(0.02, 0.05), (0.1, 0.25)),  # five times as much
        (Gap(0.14, 0.4), (0.15, 0.5)),
    ):
        found = limit_after(base, 0.5)
        assert (found.rms, found.largest) == pytest.approx(limit)


def test_a_difference_beyond_the_limits_names_worker_version_and_both():
    agreeing = moved(TRAINED, 0.04)
    assert check_agreement(agreeing, probe(), Gap(0.0, 0.0), worker="rollout-1", version=8).largest == pytest.approx(
        0.04
    )
    one_token = (TRAINED[0] + 0.2, *TRAINED[1:])
    for served in (moved(TRAINED, 0.06), one_token):
        with pytest.raises(AdapterMismatchError, match=r"rollout-1 .* version 8 .* in the root mean square .allowed: "):
            check_agreement(served, probe(), Gap(0.0, 0.0), worker="rollout-1", version=8)


def test_a_log_probability_that_is_not_finite_never_agrees():
    with pytest.raises(AdapterMismatchError):
        check_agreement((math.nan, -1.9, -3.2), probe(tolerance=1e9), None, worker="rollout-1", version=8)


def test_another_base_is_told_from_another_precision():
    assert check_base(moved(BASE, 0.1), probe(), worker="rollout-1") == Gap(pytest.approx(0.1), pytest.approx(0.1))
    with pytest.raises(AdapterMismatchError, match=r"rollout-1 serves another base model .* compare rollout\.dtype"):
        check_base(moved(BASE, 0.2), probe(), worker="rollout-1")


@pytest.mark.parametrize("by", [2e-5, 0.2])
def test_an_engine_that_moves_nothing_is_stale_however_small_the_update(by):
    served = moved(PREVIOUS, 0.03)  # more than a small update: engine and learner disagree, as in bfloat16
    with pytest.raises(
        StaleAdapterError, match=rf"still serves adapter version 7 in place of 8: .* up to {by:.1g} nats"
    ):
        judge(served, served, probe(trained=moved(PREVIOUS, by)))


def test_an_adapter_that_is_still_the_one_before_is_stale_whatever_noise_moves():
    update = probe(trained=moved(PREVIOUS, 1e-3))
    noisy = (moved(PREVIOUS, 0.03), moved(PREVIOUS, 0.02))
    judge(*noisy, update)
    with pytest.raises(StaleAdapterError):
        judge(*noisy, update, same=True)


def test_nothing_is_told_of_an_update_that_no_log_probability_shows():
    judge(PREVIOUS, PREVIOUS, probe(trained=moved(PREVIOUS, 1e-6)))
    judge(PREVIOUS, PREVIOUS, probe(previous=None))


def test_a_small_update_hidden_by_a_constant_disagreement_passes():
    """Engine and learner disagree by +0.01 everywhere, the update is -0.001: the engine moved by -0.001."""
    trained = moved(PREVIOUS, -0.001)
    judge(moved(trained, 0.01), moved(PREVIOUS, 0.01), probe(trained=trained))


def test_a_move_to_elsewhere_is_another_adapter_if_the_update_is_clear_of_the_disagreement():
    with pytest.raises(StaleAdapterError):
        judge(moved(PREVIOUS, -1e-4), moved(PREVIOUS, 1e-4), probe())


def test_an_update_below_the_disagreement_cannot_be_told_and_passes_if_something_moved():
    trained = moved(PREVIOUS, -0.001)
    served_before, served = (-1.02, -1.98, -3.03), (-1.01, -1.99, -3.02)
    judge(served, served_before, probe(trained=trained))


def test_the_noise_of_bfloat16_never_makes_a_served_update_stale():
    """Public figures of one model in two frameworks: 0.04 nats in the root mean square, each version anew. A run has
    hundreds of publishes, with updates from nothing to a nat."""
    random = Random(0)
    for _ in range(5_000):
        size = 10 ** random.uniform(-4, 0)
        previous = [random.uniform(-8, 0) for _ in range(15)]
        trained = [value + random.gauss(0, size) for value in previous]
        served_before, served = ([value + random.gauss(0, 0.04) for value in values] for values in (previous, trained))
        base = gap(served_before, previous)
        told = AdapterProbe(
            version=8,
            training_logprobs=tuple(trained),
            base_training_logprobs=tuple(previous),
            previous_training_logprobs=tuple(previous),
            tolerance=0.5,
        )
        check_agreement(served, told, base, worker="rollout-1", version=8)
        judge(served, served_before, told)


@given(st.data())
def test_a_served_update_is_never_called_stale(data):
    """Whatever the engine's constant disagreement, and a noise in it of up to a fifth of the update."""
    finite = st.floats(-1, 1, allow_subnormal=False)
    update = data.draw(st.lists(finite, min_size=3, max_size=3))
    assume(math.hypot(*update) > 1e-3)
    bias = data.draw(st.lists(finite, min_size=3, max_size=3))
    noise = [0.2 * u * s for u, s in zip(update, data.draw(st.lists(finite, min_size=3, max_size=3)), strict=True)]
    trained = tuple(p + u for p, u in zip(PREVIOUS, update, strict=True))
    served_before = [p + b for p, b in zip(PREVIOUS, bias, strict=True)]
    served = [t + b + n for t, b, n in zip(trained, bias, noise, strict=True)]
    judge(served, served_before, probe(trained=trained))


def test_errors_survive_pickling():
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, Exception):
            copy = pickle.loads(pickle.dumps(error("what happened")))
            assert type(copy).__name__ == name
            assert str(copy) == "what happened"
