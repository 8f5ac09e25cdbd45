from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

from rollout_server.arrays import Logprobs, TokenIds

ROWS = (TokenIds((1, 2, 3)), TokenIds(), Logprobs((-0.1, math.nan, -math.inf)))


def test_a_row_is_a_frozen_sequence() -> None:
    row = TokenIds((5, 6, 7))
    assert (len(row), row[-1], row[1:], row[::-1]) == (3, 7, TokenIds((6, 7)), TokenIds((7, 6, 5)))
    assert row + row[:1] == TokenIds([5, 6, 7, 5])
    assert {row: "found"}[TokenIds(np.array([5, 6, 7]))] == "found"
    assert row != (5, 6, 7)
    assert row != Logprobs((5, 6, 7))
    assert repr(row) == "TokenIds([5, 6, 7])"
    assert (6 in row, row.index(6), bool(TokenIds())) == (True, 1, False)
    with pytest.raises(TypeError):
        row[0] = 1  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(row)[0] = 1


def test_a_number_without_a_place_is_refused() -> None:
    with pytest.raises(OverflowError):
        TokenIds((2**31,))


@pytest.mark.parametrize("row", ROWS, ids=repr)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_row_comes_back_from_a_pickle_bit_for_bit(row: Any, protocol: int) -> None:
    again = pickle.loads(pickle.dumps(row, protocol=protocol))
    assert again == row == copy.deepcopy(row)
    assert again.tobytes() == row.tobytes()


def test_a_pickle_carries_the_buffer_beside_it_and_numpy_reads_it_where_it_lies() -> None:
    row, beside = TokenIds(range(1000)), []
    content = pickle.dumps(row, protocol=5, buffer_callback=beside.append)
    assert len(content) < 200
    there = bytearray(beside[0].raw())
    again = pickle.loads(content, buffers=[there])
    assert np.shares_memory(np.asarray(again), np.frombuffer(there, dtype=np.int32))
    assert again == row
