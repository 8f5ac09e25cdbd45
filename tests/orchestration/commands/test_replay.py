"""Which steps can be replayed, and what is said of one that was. Replays themselves are in the cluster's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from learner.checkpoint import write_checkpoint
from orchestration.cli import main
from orchestration.commands.replay import compare_rollouts, differences, in_words, starting_point
from orchestration.errors import RlvrError
from orchestration.run.ledger.records import write_record
from tests.orchestration.fakes import record_of


def make_run(folder: Path, records: range, checkpoints: tuple[int, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    for step in records:
        write_record(folder, record_of(step, []))
    for step in checkpoints:
        write_checkpoint(folder / "checkpoints", step, [("a", b"")], keep=9)
    return folder


@pytest.mark.parametrize(
    ("records", "checkpoints", "step", "start"),
    [
        (range(1, 9), (), 5, 0),
        (range(1, 9), (3, 6), 5, 3),
        (range(1, 9), (3, 6), 6, 3),
        (range(1, 9), (3, 6), 7, 6),
        (range(4, 9), (3, 6), 4, 3),
    ],
)
def test_the_nearest_point_before_it_is_begun_from(
    tmp_path: Path, records: range, checkpoints: tuple[int, ...], step: int, start: int
) -> None:
    assert starting_point(make_run(tmp_path, records, checkpoints), step) == start


def test_a_step_that_nothing_leads_to(tmp_path: Path) -> None:
    run = make_run(tmp_path, range(4, 9), (6,))
    with pytest.raises(RlvrError, match=r"checkpoints of 6, records of 4 to 8\); .*keep_records"):
        starting_point(run, 5)


def test_wrong_usage_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path), "3"]) == 2
    assert "is not a run's folder: it has no config.yaml" in capsys.readouterr().err
    make_run(tmp_path, range(1, 3), ())
    (tmp_path / "config.yaml").write_text("recipe: tiny\n")
    assert main(["replay", str(tmp_path), "3"]) == 2
    assert "has no record of step 3; it has records of 1 to 2" in capsys.readouterr().err


def test_figures_that_differ() -> None:
    assert differences({"a": 1.0, "b": 2.0, "n": float("nan")}, {"a": 1.0, "b": 2.5, "n": float("nan")}) == {
        "b": (2.0, 2.5)
    }
    assert differences({"a": 1.0}, {}) == {"a": (1.0, None)}


def result(**changes: Any) -> dict[str, Any]:
    same = {"step": 4, "from_step": 0, "before_equal": True, "equal": True, "different": {}}
    return same | {"recorded_by": "1 rank of 2 threads on Z", "computed_by": "1 rank of 2 threads on Z"} | changes


def test_in_words() -> None:
    assert in_words(result()) == (
        "step 4 learned again, from the beginning: figures and adapter are the recorded ones, bit for bit"
    )
    other = in_words(result(equal=False, from_step=2, before_equal=False, different={"loss": [1.0, 2.0]}))
    assert "from the checkpoint of step 2: the step is another" in other
    assert "loss was 1.0, is 2.0" in other
    assert "so is the adapter that it began from" in other
    assert "made by 1 rank of 2 threads on Z both times: settings, the code or its libraries are others" in other
    sampled = {"num_completions": 8, "same_tokens": 7, "same_logprobs": 6, "recorded_workers": 2}
    assert "of 8 completions 7 have the recorded tokens and 6 the recorded" in in_words(result(**sampled))


def test_who_computed_it_then_is_named_where_it_is_another() -> None:
    other = in_words(result(equal=False, recorded_by="2 ranks of 1 thread on Z"))
    assert "made by 2 ranks of 1 thread on Z, and again by 1 rank of 2 threads on Z: the same bits are prom" in other
    sampled = {"num_completions": 8, "same_tokens": 7, "same_logprobs": 6, "recorded_workers": 2, "equal": False}
    assert "made by 2 workers, and again by 1: the same bits are promised to as many workers" in in_words(
        result(**sampled)
    )


def test_no_groups_are_the_same() -> None:
    assert compare_rollouts(record_of(1, []), [])["equal"]
