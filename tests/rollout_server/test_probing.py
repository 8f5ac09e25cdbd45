"""The judgement behind the probe of a publish."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rollout_server import errors
from rollout_server.errors import AdapterMismatchError, StaleAdapterError
from rollout_server.probing import check_agreement, check_not_stale, looks_stale
from rollout_server.types import AdapterProbe

PREVIOUS = (-1.0, -2.0, -3.0)
TRAINED = (-1.1, -1.9, -3.2)


def probe(trained=TRAINED, previous=PREVIOUS, tolerance=0.05) -> AdapterProbe:
    return AdapterProbe(
        token_ids=(1, 2, 3, 4), training_logprobs=trained, tolerance=tolerance, previous_training_logprobs=previous
    )


def judge(served, served_before, probe) -> None:
    check_not_stale(served, served_before, probe, worker="rollout-1", version=8, previous_version=7)


def test_the_largest_difference_is_reported():
    served = (-1.11, -1.9, -3.16)
    assert check_agreement(served, probe(), worker="rollout-1", version=8) == pytest.approx(0.04)


def test_a_difference_beyond_the_tolerance_names_worker_version_and_difference():
    with pytest.raises(
        AdapterMismatchError, match=r"rollout-1 .* version 8 .* differ by 0\.1 nats \(tolerance 0\.05\)"
    ):
        check_agreement((-1.2, -1.9, -3.2), probe(), worker="rollout-1", version=8)


def test_a_log_probability_that_is_not_finite_never_agrees():
    with pytest.raises(AdapterMismatchError):
        check_agreement((math.nan, -1.9, -3.2), probe(tolerance=1e9), worker="rollout-1", version=8)


def test_what_is_nearer_to_the_previous_version_looks_stale():
    assert looks_stale(PREVIOUS, probe())
    assert not looks_stale(TRAINED, probe())
    assert not looks_stale(PREVIOUS, probe(previous=None))
    assert not looks_stale(PREVIOUS, probe(trained=PREVIOUS))  # the update was zero


def test_an_adapter_that_moves_nothing_is_stale():
    with pytest.raises(StaleAdapterError, match=r"still serves adapter version 7 in place of 8: .* up to 0\.2 nats"):
        judge(PREVIOUS, PREVIOUS, probe())


def test_a_small_update_hidden_by_a_constant_disagreement_passes():
    """Engine and learner disagree by +0.01 everywhere, the update is -0.001: the engine moved by -0.001."""
    trained = tuple(value - 0.001 for value in PREVIOUS)
    served_before = tuple(value + 0.01 for value in PREVIOUS)
    served = tuple(value + 0.01 for value in trained)
    judge(served, served_before, probe(trained=trained))


def test_a_move_to_elsewhere_is_stale_if_the_update_is_clear_of_the_disagreement():
    served_before = tuple(value + 1e-4 for value in PREVIOUS)
    served = tuple(value - 1e-4 for value in PREVIOUS)
    with pytest.raises(StaleAdapterError):
        judge(served, served_before, probe())


def test_an_update_below_the_disagreement_cannot_be_told_and_passes_if_something_moved():
    trained = (-1.001, -2.001, -3.001)
    served_before, served = (-1.02, -1.98, -3.03), (-1.01, -1.99, -3.02)
    judge(served, served_before, probe(trained=trained))


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
