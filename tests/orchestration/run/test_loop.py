"""The loop against scripted rooms: order of events, what is written, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet
import pytest

from learner.types import ScoredGroup, UpdateMetrics
from orchestration.errors import AlarmError, DataError
from orchestration.run.ledger.changes import where_to_go_on
from orchestration.run.ledger.folder import RunFolder
from orchestration.run.loop import Rooms, TrainingLoop
from orchestration.run.summary import Summary
from orchestration.settings.config import RunConfig
from orchestration.types import BuiltPrompt
from rollout_server.types import Completion, Prompt, SamplingParams
from tests.orchestration.fakes import (
    FakeLearner,
    FakeScorer,
    FakeSource,
    PublishingGenerator,
    RecordingReporter,
)


class Bench:
    """One loop with its fakes."""

    def __init__(self, folder: Path, learner: FakeLearner | None = None, /, **settings: object) -> None:
        self.config = RunConfig.model_validate(
            {
                "run_dir": str(folder),
                "max_steps": 3,
                "prompts_per_step": 2,
                "rollout": {"num_generations": 2},
                **settings,
            }
        )
        self.generator = PublishingGenerator()
        self.learner = learner or FakeLearner()
        self.reporter = RecordingReporter()
        self.stop = asyncio.Event()
        self.source = FakeSource()
        self.weights = ""
        self.scorer = FakeScorer()
        self.give_away: Callable[[Summary], None] = lambda summary: None

    async def run(self) -> Summary:
        held_out: list[BuiltPrompt] = [FakeSource().next()]
        judge = FakeScorer(lambda name, index: 1.0 if self.generator.version >= 2 else 0.0)
        rooms = Rooms(
            generator=self.generator,
            learner=self.learner,
            scorer=self.scorer,
            judges={"strict": judge, "lenient": judge},
            source=self.source,
            held_out=held_out,
            sampling=SamplingParams(num_generations=2),
            weights=self.weights,
        )
        folder = RunFolder.create(
            self.config, lambda path: where_to_go_on(path, self.config, self.source.digest(), self.weights)
        )
        try:
            return await TrainingLoop(self.config, rooms, folder, self.reporter, self.stop, self.give_away).run()
        finally:
            folder.close()


def steps_in(run: Path) -> list[int]:
    """Of the rows, each of which has its table."""
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    tables = sorted(path.name for path in (run / "completions").iterdir())
    assert tables == [f"step-{step:06d}.parquet" for step in steps]
    return steps


async def test_a_run_writes_its_folder(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    summary = await bench.run()
    run = tmp_path / "run"
    assert summary["status"] == "finished"
    assert summary["accuracy"]["strict"]["before"] == 0.0
    assert summary["accuracy"]["strict"]["after"] == 1.0
    assert summary["tokens"] == {"generated": 3 * 2 * 2, "learned": 30, "distinct": 15}
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["policy_age_max"] for row in rows] == [0, 0, 0]
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == b"3"
    table = pyarrow.parquet.read_table(run / "completions" / "step-000002.parquet")
    assert table.num_rows == 4
    assert set(table["adapter_version"].to_pylist()) == {1}
    assert bench.learner.seen == [["p0", "p1"], ["p2", "p3"], ["p4", "p5"]]


async def test_a_run_that_is_killed_before_its_adapter_can_be_given_away_has_not_finished(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def killed(summary: Summary) -> None:
        raise Killed

    bench = Bench(tmp_path / "run")
    bench.give_away = killed
    with pytest.raises(Killed):
        await bench.run()
    again = Bench(tmp_path / "run")
    told: list[Summary] = []
    again.give_away = told.append
    assert told == [await again.run()]
    assert (told[0]["status"], told[0]["steps"], again.learner.seen) == ("finished", 3, [])


@pytest.mark.parametrize(("every", "shown"), [(0, 0), (1, 3), (2, 2)])
async def test_an_example_is_shown_every_so_many_steps(tmp_path: Path, every: int, shown: int) -> None:
    bench = Bench(tmp_path / "run", example_every=every)
    examples: list[str] = []
    bench.reporter.example = lambda prompt, completion, rewards: examples.append(prompt)  # type: ignore[method-assign]
    await bench.run()
    assert len(examples) == shown


async def test_the_source_is_told_how_often_each_problem_was_answered_right(tmp_path: Path) -> None:
    """Before the step's record, thrown-away groups too.."""
    bench = Bench(tmp_path / "run", max_steps=1, drop_flat_groups=True, max_refills=1)
    bench.scorer = FakeScorer(lambda name, index: 2.0 if name == "p0" else 2.0 * index)
    await bench.run()
    assert sorted(bench.source.observed) == [("p0", 1.0), ("p1", 0.5), ("p2", 0.5)]


async def test_stop_leaves_a_usable_adapter_and_a_state_to_go_on_from(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.reporter.on_step = bench.stop.set
    summary = await bench.run()
    assert summary["status"] == "stopped"
    assert summary["steps"] == 1
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == b"1"

    again = Bench(tmp_path / "run")
    summary = await again.run()
    assert summary["status"] == "finished"
    assert summary["steps"] == 3
    assert summary["accuracy"]["strict"]["before"] == 0.0  # measured in the first start, kept
    # The problems begun when it stopped come first; none is lost, none is learned from twice.
    assert bench.learner.seen + again.learner.seen == [["p0", "p1"], ["p2", "p3"], ["p4", "p5"]]
    assert steps_in(tmp_path / "run") == [1, 2, 3]


@pytest.mark.parametrize("step", [1, 2])
async def test_an_update_that_outlasts_a_stop_is_made_by_the_next_start(step: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    bench = Bench(run, stop_grace_s=0.01)

    class Endless(FakeLearner):
        async def update(self, groups_P: Sequence[ScoredGroup]) -> UpdateMetrics:
            if self.version + 1 == step:
                bench.stop.set()
                await asyncio.Event().wait()
            return await super().update(groups_P)

    bench.learner = Endless()
    summary = await bench.run()
    assert (summary["status"], summary["steps"]) == ("stopped", step - 1)
    assert f"step {step} was abandoned: its update took over stop_grace_s=0.01 s" in bench.reporter.notes
    again = Bench(run)
    assert (await again.run())["steps"] == 3
    assert again.learner.seen == [["p0", "p1"], ["p2", "p3"], ["p4", "p5"]]  # what is recorded from its record
    assert steps_in(run) == [1, 2, 3]


async def test_a_failed_update_keeps_adapter_prompts_and_reason(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", FakeLearner(fail_at=2))
    with pytest.raises(RuntimeError, match="not finite"):
        await bench.run()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("failed", "the loss is not finite")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == b"1"
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-000001" / "state.json").read_text())
    assert (state["step"], state["pending"]) == (1, ["p2", "p3"])


async def test_a_failed_publish_does_not_learn_the_batch_twice(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.generator.unreachable_at = 2
    with pytest.raises(RuntimeError, match="not reached"):
        await bench.run()
    again = Bench(tmp_path / "run")
    summary = await again.run()
    assert summary["steps"] == 3
    assert bench.learner.seen + again.learner.seen == [["p0", "p1"], ["p2", "p3"], ["p4", "p5"]]


async def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", FakeLearner(fail_at=3), save_every=1)
    with pytest.raises(RuntimeError):
        await bench.run()
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000001", "step-000002"]
    (checkpoints / "step-000002" / "state.json").write_text("{")
    again = Bench(tmp_path / "run")
    assert (await again.run())["steps"] == 3
    warning, changed, info = again.reporter.notes[:3]
    assert "step-000002 is not a whole checkpoint: state.json has 1 bytes" in warning
    assert changed == "changed since the last start: save_every was 1, is 0"
    assert "going on after step 2" in info
    assert again.learner.seen == [["p2", "p3"], ["p4", "p5"]]  # the first of them from its record
    assert steps_in(tmp_path / "run") == [1, 2, 3]

    (tmp_path / "run" / "summary.json").unlink()
    for path in checkpoints.iterdir():
        (path / "manifest.json").unlink()
    for path in (tmp_path / "run" / "records").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"manifest\.json is missing; choose another run_dir"):
        await Bench(tmp_path / "run").run()


async def test_a_checkpoint_that_cannot_be_written_is_said_and_its_steps_are_recorded(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", FakeLearner(fail_at=3), save_every=1, retry_io_s=0)
    bench.learner.full_disk = True
    with pytest.raises(RuntimeError, match="not finite"):
        await bench.run()
    assert sum("No space left on device; the run goes on" in note for note in bench.reporter.notes) == 2
    assert any("the run's state could not be saved" in note for note in bench.reporter.notes)
    again = Bench(tmp_path / "run")
    assert (await again.run())["steps"] == 3
    assert again.learner.seen == [["p0", "p1"], ["p2", "p3"], ["p4", "p5"]]  # the first two from their records
    assert steps_in(tmp_path / "run") == [1, 2, 3]


async def test_flat_groups_for_many_steps_are_said_aloud(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", max_steps=4, flat_steps_alarm=2)
    bench.scorer = FakeScorer(lambda name, index: 0.0)
    await bench.run()
    alarms = [note for note in bench.reporter.notes if "nothing is learned" in note]
    assert len(alarms) == 2
    assert "drop_flat_groups=true" in alarms[0]


@pytest.mark.parametrize(
    ("weight", "num_tokens", "alarms"),
    [(1.0, 9, 0), (0.5, 9, 0), (2.0, 9, 0), (0.49, 9, 3), (2.1, 9, 3), (0.0, 9, 3), (0.0, 0, 0), (None, 9, 0)],
)
async def test_importance_weights_out_of_bounds_are_said_ever_more_seldom(
    tmp_path: Path, weight: float | None, num_tokens: int, alarms: int
) -> None:
    """After 1, 2 and 4 of five steps; not where no loss was computed, whose figures are all 0."""
    bench = Bench(tmp_path / "run", max_steps=5)
    bench.learner.values |= {"num_loss_tokens": float(num_tokens)}
    bench.learner.values |= {} if weight is None else {"importance_sampling_weight_mean": weight}
    await bench.run()
    said = [note for note in bench.reporter.notes if "sampler correction" in note]
    assert len(said) == alarms
    assert all(f"(mean weight {weight:.3g})" in note and "rollout.dtype" in note for note in said)


async def test_a_run_ends_with_an_alarm_that_is_to_end_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", max_steps=5, stop_on_alarms=["nothing_learned"], flat_steps_alarm=2)
    bench.scorer = FakeScorer(lambda name, index: 0.0)
    with pytest.raises(AlarmError, match="'nothing_learned' holds"):
        await bench.run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["alarms"] for row in rows] == [0, 1]
    assert any("kept in" in note for note in bench.reporter.notes)


async def test_completions_of_a_step_are_found_by_their_ids(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", max_steps=1)
    await bench.run()
    table = pyarrow.parquet.read_table(tmp_path / "run" / "completions" / "step-000001.parquet")
    assert table["completion_id"].to_pylist() == ["1/0/0", "1/0/1", "1/1/0", "1/1/1"]
    assert [len(ids) for ids in table["token_ids"].to_pylist()] == table["num_tokens"].to_pylist()
    assert [len(found) for found in table["sampling_logprobs"].to_pylist()] == table["num_tokens"].to_pylist()


async def test_a_batch_without_a_single_score_stops_the_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.scorer = FakeScorer(lambda name, index: None)
    with pytest.raises(Exception, match="could not score any"):
        await bench.run()


async def test_evaluation_on_the_way(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", eval_every=1)
    await bench.run()
    assert [when for when, *_ in bench.reporter.evaluations] == ["before", "step 1", "step 2", "after"]


class SlowGenerator(PublishingGenerator):
    """Notes of each request what else was under way: batches of other sizes give other last bits."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way: list[float] = []
        self.mixed = False

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        self.under_way.append(sampling.temperature)
        self.mixed |= len(set(self.under_way)) > 1
        await asyncio.sleep(0.02)
        self.under_way.remove(sampling.temperature)
        return await super().generate(prompt, sampling)


@pytest.mark.parametrize(("max_staleness", "mixed"), [(0, False), (1, True)])
async def test_an_evaluation_has_the_engines_for_itself_without_staleness(
    tmp_path: Path, max_staleness: int, mixed: bool
) -> None:
    bench = Bench(tmp_path / "run", eval_every=1, max_staleness=max_staleness)
    bench.generator = SlowGenerator()
    summary = await bench.run()
    assert summary["steps"] == 3
    assert bench.generator.mixed is mixed
