"""Which worker gets the next prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_server.balancing import Balancer, prefix_key


def test_the_worker_with_the_fewest_outstanding_sequences_is_next():
    balancer = Balancer(3)
    assert balancer.begin(prefix=1, num_sequences=8) == 0
    assert balancer.begin(prefix=1, num_sequences=2) == 1
    assert balancer.begin(prefix=1, num_sequences=4) == 2
    assert balancer.begin(prefix=1, num_sequences=4) == 1
    assert balancer.outstanding == (8, 6, 4)


def test_among_equals_the_worker_with_the_prefix_is_next_and_then_whose_turn_is_longest_ago():
    balancer = Balancer(3)
    for expected in (0, 1, 2):
        assert balancer.begin(prefix=expected, num_sequences=1) == expected
        balancer.end(expected, num_sequences=1)
    assert balancer.begin(prefix=1, num_sequences=1) == 1
    balancer.end(1, num_sequences=1)
    assert balancer.begin(prefix=9, num_sequences=1) == 0
    assert balancer.begin(prefix=9, num_sequences=1) == 2


@given(st.integers(1, 5), st.lists(st.integers(1, 8), max_size=60))
def test_no_worker_is_more_than_one_group_ahead(num_workers, groups):
    balancer = Balancer(num_workers)
    for num_sequences in groups:
        balancer.begin(prefix=0, num_sequences=num_sequences)
    assert max(balancer.outstanding) - min(balancer.outstanding) <= max(groups, default=0)
    assert sum(balancer.outstanding) == sum(groups)


def test_there_must_be_a_worker():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Balancer(0)


def test_prompts_with_the_same_beginning_share_a_key():
    header = list(range(128))
    assert prefix_key([*header, 1]) == prefix_key([*header, 2])
    assert prefix_key([1, 2]) != prefix_key([1, 3])


def test_who_stays_goes_to_the_worker_that_it_had_whatever_that_has_to_do():
    balancer = Balancer(2)
    assert balancer.begin(prefix="a", num_sequences=8, stay=True) == 0
    assert balancer.begin(prefix="a", num_sequences=1, stay=True) == 0
    assert balancer.begin(prefix="b", num_sequences=1, stay=True) == 1
    assert balancer.begin(prefix="a", num_sequences=1, stay=True, among={1}) == 1  # the other is gone
    assert balancer.begin(prefix="a", num_sequences=1, stay=True) == 1
