"""What a run keeps when it ends in the middle, and how the next start goes on; with scripted rooms."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from learner.types import ScoredCompletion, ScoredGroup, UpdateMetrics
from orchestration.errors import ConfigError, DataError, NoRoomError, RemoteTimeoutError, RlvrError
from orchestration.run.ledger import room
from orchestration.run.ledger.folder import RunFolder
from orchestration.run.ledger.records import (
    RunState,
    StepRecord,
    prune_records,
    read_record,
    record_path,
    recorded_steps,
    storable,
    unpacked,
    write_record,
)
from rollout_server.types import Completion, FinishReason, PublishReport
from tests.orchestration.fakes import FakeAdapter, FakeLearner, KilledError
from tests.orchestration.run.test_loop import Bench, steps_in

ALL = [["p0", "p1"], ["p2", "p3"], ["p4", "p5"]]


async def killed(folder: Path, at: int, **settings: object) -> Bench:
    bench = Bench(folder, **settings)
    bench.generator.killed_at = at
    with pytest.raises(KilledError):
        await bench.run()
    return bench


async def test_a_killed_run_goes_on_from_its_records_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    await killed(run, 2)
    assert not (run / "checkpoints").exists()
    assert recorded_steps(run) == [1, 2]
    (run / "completions" / "step-000001.parquet").unlink()
    again = Bench(run)
    assert (await again.run())["steps"] == 3
    assert again.learner.seen == ALL  # the first two from their records: nothing was generated for them
    assert set(again.generator.started) == {"p0", "p4", "p5"}  # p0 is what evaluations ask
    assert steps_in(run) == [1, 2, 3]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["publish_ms"] is None for row in rows] == [False, True, False]  # killed while it was published
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == b"3"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000003"]  # at every end


async def test_a_killed_run_goes_on_from_its_checkpoint_and_the_records_after_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    await killed(run, 3, max_steps=4, save_every=2)
    again = Bench(run, max_steps=4)
    assert (await again.run())["steps"] == 4
    assert again.learner.seen == [["p4", "p5"], ["p6", "p7"]]
    assert steps_in(run) == [1, 2, 3, 4]


async def test_steps_without_checkpoint_and_records_are_refused_or_gone_on_from_by_their_adapter(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    await killed(run, 3)
    for step in recorded_steps(run):
        record_path(run, step).unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"holds 3 steps and neither a checkpoint nor their records.*resume=adapter"):
        await Bench(run).run()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    (run / "adapter" / "adapter_config.json").write_text("{}")  # the fake's adapter has one file only
    again = Bench(run, resume="adapter", max_steps=4)
    assert (await again.run())["steps"] == 4
    assert any("as of step 3, with a new optimizer" in note for note in again.reporter.notes)
    assert again.learner.seen == [["p6", "p7"]]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 4]


async def test_steps_that_are_made_again_are_set_aside_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    await killed(run, 3)
    record_path(run, 2).write_bytes(b"damaged")
    again = Bench(run)
    assert (await again.run())["steps"] == 3
    assert any("is damaged, its checksum is another; the run goes on after step 1" in n for n in again.reporter.notes)
    aside = run / "set-aside" / "1"
    names = {"metrics.jsonl", "step-000002.parquet", "step-000003.parquet", "step-000002.record", "step-000003.record"}
    assert {path.name for path in aside.iterdir()} == names
    assert steps_in(run) == [1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"prompts_per_step": 1}, "prompts_per_step was 2, is 1"),
        ({"model": {"name": "tiny"}}, "model.name was smollm2-135m-instruct, is tiny"),
        ({"data": {"kind": "copy"}}, "data.kind was arithmetic, is copy"),
        ({"reward": {"rewards": [{"name": "exact"}]}}, "reward.rewards was"),
        ({"reward": {"control": "random"}}, "reward.control was none, is random"),
        ({"learner": {"lora": {"r": 8}}}, "learner.lora.r was 16, is 8"),  # no checkpoint is there that says so
    ],
)
async def test_what_a_run_is_made_of_cannot_be_changed_on_its_way(
    tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    await killed(tmp_path / "run", 1)
    with pytest.raises(ConfigError, match=f"was begun otherwise: .*{said}"):
        await Bench(tmp_path / "run", **settings).run()


async def test_other_problems_under_the_same_settings_are_noticed(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.source.digest = lambda: "then"  # type: ignore[method-assign]
    bench.generator.killed_at = 1
    with pytest.raises(KilledError):
        await bench.run()
    again = Bench(tmp_path / "run")
    again.source.digest = lambda: "now"  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="its training problems were others"):
        await again.run()


async def test_a_model_may_move_but_not_be_another(tmp_path: Path) -> None:
    """Before the first checkpoint too."""

    def bench(place: str, weights: str) -> Bench:
        made = Bench(tmp_path / "run", model={"name": place})
        made.weights = weights
        return made

    first = bench("/a/model", "then")
    first.generator.killed_at = 1
    with pytest.raises(KilledError):
        await first.run()
    with pytest.raises(ConfigError, match="the weights of /a/model were others"):
        await bench("/a/model", "now").run()
    with pytest.raises(ConfigError, match=r"model\.name was /a/model, is /b/model"):
        await bench("/b/model", "now").run()
    assert (await bench("/b/model", "then").run())["steps"] == 3


async def test_what_may_change_is_said(tmp_path: Path) -> None:
    await killed(tmp_path / "run", 2)
    again = Bench(tmp_path / "run", flat_steps_alarm=7, max_steps=4)
    assert (await again.run())["steps"] == 4
    (changed,) = [note for note in again.reporter.notes if note.startswith("changed since the last start")]
    assert "flat_steps_alarm was 5, is 7" in changed
    assert "max_steps was 3, is 4" in changed


@pytest.mark.parametrize("damaged", [b"", b"\xff: [", b"- 1"])
async def test_settings_that_cannot_be_compared_are_said(tmp_path: Path, damaged: bytes) -> None:
    await killed(tmp_path / "run", 2)
    (tmp_path / "run" / "config.yaml").write_bytes(damaged)
    again = Bench(tmp_path / "run")
    assert (await again.run())["steps"] == 3
    assert any("nobody has compared the settings" in note for note in again.reporter.notes)


async def test_an_update_that_answers_too_late_is_not_learned_twice(tmp_path: Path) -> None:
    run = tmp_path / "run"
    bench = Bench(run)
    bench.learner.too_late_at = 2
    with pytest.raises(RemoteTimeoutError):
        await bench.run()
    assert (run / "checkpoints" / "step-000002").is_dir()  # the learner had made it after all
    again = Bench(run)
    assert (await again.run())["steps"] == 3
    assert bench.learner.seen + again.learner.seen == ALL
    assert steps_in(run) == [1, 2, 3]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert ["loss" in row for row in rows] == [True, False, True]  # what the learner said of it is not known


async def test_an_update_that_never_was_is_made_by_the_next_start(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", FakeLearner(fail_at=2))
    with pytest.raises(RuntimeError):
        await bench.run()
    again = Bench(tmp_path / "run")
    await again.run()
    assert bench.learner.seen + again.learner.seen == ALL


@pytest.mark.parametrize("broken", ["completions", "adapter", "records"])
async def test_a_file_that_cannot_be_written_ends_the_run_and_loses_nothing(tmp_path: Path, broken: str) -> None:
    run = tmp_path / "run"
    bench = Bench(run)

    def break_it() -> None:
        if len(bench.reporter.rows) == 1:
            place = run / (broken if broken != "adapter" else ".adapter.new")
            if place.is_dir():
                place.rename(run / "elsewhere")
            place.write_text("in the way")

    bench.reporter.on_step = break_it
    with pytest.raises(RlvrError, match="cannot write") as caught:
        await bench.run()
    assert not isinstance(caught.value, ConfigError)  # whose exit status says that the command was wrong
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"
    place = run / (broken if broken != "adapter" else ".adapter.new")
    place.unlink()
    if (run / "elsewhere").is_dir():
        (run / "elsewhere").rename(place)
    again = Bench(run)
    assert (await again.run())["steps"] == 3
    assert bench.learner.seen + again.learner.seen == ALL  # the checkpoint was written all the same
    assert steps_in(run) == [1, 2, 3] or broken == "records"  # without a record a row is all that is left of a step


@pytest.mark.parametrize("save_every", [0, 1])
async def test_a_folder_that_is_removed_ends_the_run_and_can_be_gone_on_from(tmp_path: Path, save_every: int) -> None:
    """Also where it is made again at once, for the checkpoint of the step before."""
    run = tmp_path / "run"
    bench = Bench(run, save_every=save_every)
    bench.reporter.on_step = lambda: len(bench.reporter.rows) == 1 and shutil.rmtree(run)
    with pytest.raises(RlvrError, match="not the folder that was opened; was it removed or moved meanwhile"):
        await bench.run()
    again = Bench(run)
    assert (await again.run())["steps"] == 3
    assert bench.learner.seen + again.learner.seen == ALL


async def test_room_on_the_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "POLL_S", 0.001)
    write, attempts = RunFolder.write_record, []

    def full_at_first(folder: RunFolder, record: StepRecord) -> None:
        attempts.append(record.step)
        if len(attempts) <= 3 or folder.path.name == "other":
            raise NoRoomError("cannot write it: No space left on device; free some space")
        write(folder, record)

    monkeypatch.setattr(RunFolder, "write_record", full_at_first)
    bench = Bench(tmp_path / "run")
    assert (await bench.run())["steps"] == 3
    assert attempts == [1, 1, 1, 1, 2, 3]
    assert sum("it is tried again for retry_io_s=600 s" in note for note in bench.reporter.notes) == 1
    assert recorded_steps(tmp_path / "run") == [1, 2, 3]

    attempts.clear()
    given_up = Bench(tmp_path / "other", retry_io_s=0.01)
    monkeypatch.setattr(RunFolder, "write_table", full_at_first)
    given_up.learner.full_disk = True
    with pytest.raises(NoRoomError, match="No space left"):
        await given_up.run()
    assert sum("it is tried again" in note for note in given_up.reporter.notes) == 1  # and for the other files no more


async def test_a_stop_while_resuming_loses_no_prompt(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = Bench(run)
    first.reporter.on_step = first.stop.set
    await first.run()
    second = Bench(run)
    second.stop.set()  # before it has drawn what the first had begun
    assert (await second.run())["status"] == "stopped"
    third = Bench(run)
    await third.run()
    assert first.learner.seen + third.learner.seen == ALL


async def test_a_stop_ends_the_way_back_that_takes_long_and_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    await killed(run, 3)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = Bench(run, stop_grace_s=0.01)

    async def update(groups_P: Sequence[ScoredGroup]) -> UpdateMetrics:
        again.stop.set()
        await asyncio.Event().wait()
        raise AssertionError

    again.learner.update = update  # type: ignore[method-assign]
    summary = await again.run()
    assert (summary["status"], summary["steps"]) == ("stopped", 3)
    (run / "summary.json").unlink()
    before.pop(run / "config.yaml")
    assert {path: path.read_bytes() for path in before} == before
    last = Bench(run)
    assert (await last.run())["steps"] == 3
    assert last.learner.seen == ALL


async def test_a_stop_is_heard_while_an_adapter_is_published(tmp_path: Path) -> None:
    run = tmp_path / "run"
    bench = Bench(run, stop_grace_s=0.01)

    async def publish(adapter: FakeAdapter) -> Sequence[PublishReport]:
        bench.stop.set()
        await asyncio.Event().wait()
        raise AssertionError

    bench.generator.publish = publish  # type: ignore[method-assign]
    assert (await bench.run())["status"] == "stopped"
    assert steps_in(run) == [1]
    again = Bench(run)
    assert (await again.run())["steps"] == 3
    assert bench.learner.seen + again.learner.seen == ALL


async def test_a_stop_is_heard_while_a_checkpoint_waits_for_room_or_takes_long(tmp_path: Path) -> None:
    run = tmp_path / "run"
    bench = Bench(run, save_every=1)
    bench.learner.full_disk = True

    def note(level: str, message: str) -> None:
        bench.reporter.notes.append(message)
        if "it is tried again" in message:
            bench.stop.set()

    bench.reporter.note = note  # type: ignore[method-assign]
    summary = await bench.run()
    assert (summary["status"], summary["steps"]) == ("stopped", 1)
    assert sum("No space left on device; it is tried again" in note for note in bench.reporter.notes) == 1

    again = Bench(run, save_every=1, stop_grace_s=0.01)

    async def save_checkpoint(folder: str, files: Mapping[str, bytes]) -> None:
        again.stop.set()
        await asyncio.Event().wait()

    again.learner.save_checkpoint = save_checkpoint  # type: ignore[method-assign]
    assert (await again.run())["steps"] == 2
    assert sum("a checkpoint was abandoned" in note for note in again.reporter.notes) == 1
    last = Bench(run)
    assert (await last.run())["steps"] == 3
    assert last.learner.seen == ALL


async def test_groups_that_are_ready_are_kept_and_those_under_way_asked_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"max_staleness": 1, "rollout": {"num_generations": 2, "max_adapter_versions": 3}}
    first = Bench(run, **settings)

    def stop_soon() -> None:  # the next batch: p2 and p3 are ready, p4 and p5 begun when it stops
        first.generator.hold()
        first.stop.set()

    first.reporter.on_step = stop_soon
    await first.run()
    assert first.learner.seen == ALL[:1]
    second = Bench(run, **settings)
    assert (await second.run())["steps"] == 3
    asked = second.generator.started
    assert "p2" not in asked  # ready on version 0, and still young enough
    assert "p3" not in asked
    assert {"p4", "p5"} <= set(asked)
    assert first.learner.seen + second.learner.seen == ALL


async def test_a_checkpoint_is_written_by_time(tmp_path: Path) -> None:
    await killed(tmp_path / "run", 3, save_minutes=1e-9)
    assert (tmp_path / "run" / "checkpoints" / "step-000002").is_dir()


async def test_a_checkpoint_begins_when_its_steps_record_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed in between goes on from the checkpoint, and its books would lack the step."""
    run = tmp_path / "run"
    bench = Bench(run, max_steps=3, save_every=1)
    save, write, seen, known = bench.learner.save_checkpoint, RunFolder.write_record, [], threading.Event()

    async def saved(folder: str, files: Mapping[str, bytes]) -> None:
        seen.append(recorded_steps(run)[-1:])
        known.set()
        await save(folder, files)

    def written(folder: RunFolder, record: StepRecord) -> None:
        known.wait(0.2)  # for a checkpoint that does not wait
        write(folder, record)

    monkeypatch.setattr(bench.learner, "save_checkpoint", saved)
    monkeypatch.setattr(RunFolder, "write_record", written)
    await bench.run()
    assert seen == [[1], [2], [3]]


async def test_old_records_are_removed_once_a_checkpoint_stands_in_for_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    await Bench(run, max_steps=6, save_every=1, keep_records=1).run()
    assert recorded_steps(run) == [6]  # step-000005 and step-000006 are the checkpoints
    await Bench(tmp_path / "other", max_steps=6, save_every=1, keep_records=4).run()
    assert recorded_steps(tmp_path / "other") == [3, 4, 5, 6]


# --- records


def a_record(step: int, text: str = "…") -> StepRecord:
    completion = Completion(
        prompt_id="p",
        token_ids=(1, 2),
        sampling_logprobs=(-0.1, -1e-9),
        text=text,
        finish_reason=FinishReason.LENGTH,
        adapter_version=step - 1,
    )
    member = ScoredCompletion(completion=completion, rewards=(None, 0.5), total=0.1 + 0.2)
    return StepRecord(
        groups_P=storable([ScoredGroup(prompt_id="p", prompt_token_ids=(3,), members=(member,))]),
        prompt_texts={"p": "?"},
        seeds=(3,),
        reward_names=("a", "b"),
        update=UpdateMetrics(step=step, values={"loss": 1 / 3}, advantages=((None,),)),
        row={"step": step, "reward_mean": None},
        adapter="ab",
        state=RunState(step=step, cursor=1, pending=("q",), before={"strict": (1.0, None)}, tokens={}, seconds={}),
    )


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    for step in (1, 2):
        write_record(tmp_path, a_record(step))
    assert read_record(tmp_path, 2) == a_record(2)
    assert recorded_steps(tmp_path) == [1, 2]
    prune_records(tmp_path, keep_from=2)
    assert recorded_steps(tmp_path) == [2]


def test_a_record_with_lists_of_numbers_is_read(tmp_path: Path) -> None:
    """As records were once written."""
    as_lists = msgspec.msgpack.encode(a_record(1), enc_hook=lambda row: row.tolist())
    assert unpacked(pa.compress(as_lists, codec="zstd", asbytes=True), StepRecord) == a_record(1)


def test_text_without_a_form_in_files_is_replaced(tmp_path: Path) -> None:
    write_record(tmp_path, a_record(1, text="a\ud800b"))
    assert read_record(tmp_path, 1).groups_P[0].members[0].completion.text == "a?b"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_record_is_noticed(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(write_record(tmp_path, a_record(1)))
    with pytest.raises(DataError, match=r"step-000001\.record"):
        read_record(tmp_path, 1)


async def test_the_loops_tasks_are_not_left_behind(tmp_path: Path) -> None:
    await Bench(tmp_path / "run").run()
    assert asyncio.all_tasks() == {asyncio.current_task()}
