"""Checkpoints: whole or not there, and an update after loading that is the one the run would have made."""

from __future__ import annotations

import errno
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from learner import checkpoint
from learner.checkpoint import check_checkpoint, clear_leftovers, find_checkpoint, write_checkpoint
from learner.config import LearnerConfig
from learner.engine.state import refuse_other_parameters
from learner.errors import LearnerError, NonFiniteLossError
from learner.types import UpdateMetrics
from learner.worker import LearnerRank
from rollout_server.types import ADAPTER_CONFIG
from tests.learner.helpers import make_rank, random_groups, run_ranks
from tests.models import random_model

BASE: dict[str, Any] = {"learning_rate": 1e-3, "num_threads": 1, "lora": {"r": 3, "lora_alpha": 6}}
SCHEDULE: dict[str, Any] = {"lr_scheduler_type": "cosine", "num_iterations": 2, "warmup_steps": 3}
"""The cosine ends with `make_rank`'s run, after ten batches."""
DROPOUT: dict[str, Any] = {"lora": {"r": 3, "lora_alpha": 6, "lora_dropout": 0.3}}

HEADS = ("embed_tokens", "lm_head")

# --- Folders


def write(root: Path, step: int, *, keep: int = 2) -> Path:
    return write_checkpoint(root, step, [("a.bin", b"a" * step), ("b.bin", b"b")], keep=keep)


def names(root: Path) -> list[str]:
    """All that lies there, hidden folders too."""
    return sorted(path.name for path in root.iterdir())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 5, 1_000_000):
        write(tmp_path, step)
    assert names(tmp_path) == ["step-000005", "step-1000000"]
    found = find_checkpoint(tmp_path)
    assert (found.newest, found.damaged) == (tmp_path / "step-1000000", ())
    assert json.loads((tmp_path / "step-000005" / "manifest.json").read_text())["files"]["a.bin"]["bytes"] == 5


def test_a_run_that_went_back_leaves_no_later_steps(tmp_path: Path) -> None:
    for step in (4, 6, 8):
        write(tmp_path, step, keep=3)
    write(tmp_path, 5, keep=3)
    assert names(tmp_path) == ["step-000004", "step-000005"]


def test_every_new_name_is_flushed_with_the_folder_it_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the write must not take the folders that lead to it."""
    flushed: list[Path] = []
    flush = checkpoint._flush_folder
    monkeypatch.setattr(checkpoint, "_flush_folder", lambda folder: (flush(folder), flushed.append(folder)))
    root = tmp_path / "run" / "checkpoints"
    write(root, 1)
    assert flushed == [tmp_path, tmp_path / "run", root / ".step-000001.partial", root]
    flushed.clear()
    write(root, 2)
    assert flushed == [root / ".step-000002.partial", root]


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write_checkpoint(tmp_path, 3, [("c.bin", b"new")], keep=1)
    assert names(tmp_path) == ["step-000003"]
    assert names(tmp_path / "step-000003") == ["c.bin", "manifest.json"]


def truncate(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"a")


def flip(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"ab")


def lose(folder: Path) -> None:
    (folder / "a.bin").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def cut_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {"a.b')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "a.bin has 1 bytes instead of 2"),
        (flip, "a.bin is damaged, its checksum is another"),
        (lose, "a.bin is missing"),
        (lose_manifest, "manifest.json is missing"),
        (cut_manifest, "manifest.json cannot be read"),
    ],
)
def test_a_damaged_one_is_skipped(tmp_path: Path, damage: Any, says: str) -> None:
    write(tmp_path, 1)
    damage(write(tmp_path, 2))
    found = find_checkpoint(tmp_path)
    assert found.newest == tmp_path / "step-000001"
    (said,) = found.damaged
    assert says in said
    assert "step-000002" in said
    with pytest.raises(LearnerError, match="not a whole checkpoint"):
        check_checkpoint(tmp_path / "step-000002")


def test_a_damaged_one_does_not_count_among_the_kept(tmp_path: Path) -> None:
    write(tmp_path, 1)
    truncate(write(tmp_path, 2))
    write(tmp_path, 3)
    assert names(tmp_path) == ["step-000001", "step-000003"]


def test_nothing_there(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "missing").newest is None
    (tmp_path / "step-000003.tmp").mkdir()
    (tmp_path / "step-000004").write_text("a file")
    assert find_checkpoint(tmp_path) == checkpoint.FoundCheckpoint(newest=None, damaged=())


def test_killed_while_writing(tmp_path: Path) -> None:
    write(tmp_path, 1)
    half = tmp_path / ".step-000002.partial"
    half.mkdir()
    (half / "a.bin").write_bytes(b"a")
    assert find_checkpoint(tmp_path).newest == tmp_path / "step-000001"
    write(tmp_path, 2)
    assert names(tmp_path) == ["step-000001", "step-000002"]


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    write(tmp_path, 7).rename(tmp_path / ".step-000007.replaced")
    clear_leftovers(tmp_path)
    assert find_checkpoint(tmp_path).newest == tmp_path / "step-000007"


def test_killed_while_removing(tmp_path: Path) -> None:
    write(tmp_path, 1).rename(tmp_path / ".step-000001.removed")
    clear_leftovers(tmp_path)
    assert names(tmp_path) == []


WRITE_FOR_EVER = """
from pathlib import Path
import sys
from learner.checkpoint import write_checkpoint
for step in range(int(sys.argv[2]), 1_000_000):
    for _ in range(2):
        write_checkpoint(Path(sys.argv[1]), step, [("a.bin", b"a" * 100_000), ("b.bin", b"b" * step)], keep=1)
    print(step, flush=True)
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """What was there before the kill, or something newer, is there after it; nothing half is ever met."""
    step = 1
    for attempt in range(5):
        command = [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path), str(step)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            written = int(process.stdout.readline())
            time.sleep(0.013 * attempt)
            process.kill()
        clear_leftovers(tmp_path)
        found = find_checkpoint(tmp_path)
        assert found.damaged == ()
        assert found.newest is not None
        step = int(found.newest.name.removeprefix("step-"))
        assert step >= written


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second file meets the end of the disk half way."""
    write(tmp_path, 1)
    whole = checkpoint._write

    def until_full(path: Path, content: bytes) -> None:
        if path.name == "a.bin":
            whole(path, content)
            return
        path.write_bytes(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", until_full)
    with pytest.raises(LearnerError) as caught:
        write(tmp_path, 2, keep=1)
    assert str(caught.value) == (
        f"cannot write checkpoint {tmp_path}/step-000002: No space left on device; free some space. "
        "The older ones are untouched"
    )
    assert names(tmp_path) == ["step-000001"]
    check_checkpoint(tmp_path / "step-000001")


def test_older_ones_go_only_after_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)
    seen = []
    flush = checkpoint._flush_folder

    def spy(folder: Path) -> None:
        flush(folder)
        seen.append([name for name in names(tmp_path) if find_checkpoint(tmp_path).newest is not None])

    monkeypatch.setattr(checkpoint, "_flush_folder", spy)
    write(tmp_path, 2, keep=1)
    assert seen == [[".step-000002.partial", "step-000001"], ["step-000001", "step-000002"]]
    assert names(tmp_path) == ["step-000002"]


def test_names_that_are_no_plain_files(tmp_path: Path) -> None:
    for bad in ("../x", "manifest.json", "a/b"):
        with pytest.raises(ValueError, match="not a plain file name"):
            write_checkpoint(tmp_path, 1, [(bad, b"")], keep=1)
    assert names(tmp_path) == []


# --- Learners


@pytest.fixture(scope="module")
def odd_model() -> str:
    """With r=3 and 33 hidden units some parameters have 99 elements: two ranks do not divide them."""
    return str(random_model("llama", intermediate_size=33))


@contextmanager
def started(model_path: str, **settings: Any) -> Iterator[LearnerRank]:
    rank = make_rank(model_path, LearnerConfig(**(BASE | settings)))
    try:
        rank.start()
        yield rank
    finally:
        rank.shutdown()


@contextmanager
def beside(rank: LearnerRank, model_path: str, **settings: Any) -> Iterator[LearnerRank]:
    """Another learner on the processes of a started one."""
    config = LearnerConfig(**(BASE | {"num_ranks": rank._world_size} | settings))
    other = make_rank(model_path, config, rank=rank._rank, world_size=rank._world_size)
    other.start()
    yield other  # not shut down: the process group is the first one's


def update(rank: LearnerRank, seed: int) -> UpdateMetrics:
    return replace(rank.update(random_groups(seed), max_staleness=99), seconds=0.0)


def after(rank: LearnerRank, *seeds: int) -> tuple[list[UpdateMetrics], dict[str, bytes]]:
    """Metrics of the next updates, and the adapter's files (rank 0)."""
    metrics = [update(rank, seed) for seed in seeds]
    return metrics, dict(rank.export_adapter().files)


def save(rank: LearnerRank, folder: Path) -> str:
    rank.save_checkpoint(str(folder), {"note.txt": b"mine"})
    return str(folder / f"step-{rank._step:06d}")


def apart(found: dict[str, bytes], expected: dict[str, bytes]) -> float:
    """Largest difference of two adapters' elements."""
    a, b = load(found["adapter_model.safetensors"]), load(expected["adapter_model.safetensors"])
    assert set(a) == set(b)
    return max(float((a[name] - b[name]).abs().max()) for name in b)


@pytest.mark.parametrize(
    ("zero_stage", "heads"), [(0, ()), (1, ()), (2, ()), (3, ()), (0, HEADS), (2, HEADS), (3, HEADS)]
)
def test_one_rank_goes_on_bit_for_bit(odd_model: str, tmp_path: Path, zero_stage: int, heads: tuple[str, ...]) -> None:
    lora = DROPOUT["lora"] | {"modules_to_save": heads}
    settings = SCHEDULE | {"zero_stage": zero_stage, "lora": lora}
    with started(odd_model, **settings) as rank:
        after(rank, 0, 1)
        folder = save(rank, tmp_path)
        straight = after(rank, 2, 3)
    torch.manual_seed(12345)
    with started(odd_model, **settings) as rank:
        assert rank.load_checkpoint(folder) == 2
        resumed = after(rank, 2, 3)
        assert resumed == straight
        assert rank.load_checkpoint(folder) == 2  # back in time, on a learner that has gone on
        assert after(rank, 2, 3) == straight
    metrics, _ = straight
    assert [update.step for update in metrics] == [3, 4]
    assert 0 < metrics[1].values["learning_rate"] < metrics[0].values["learning_rate"] < 1e-3


def test_dropout_is_really_random(odd_model: str, tmp_path: Path) -> None:
    """Without its random state, an update would be another."""
    with started(odd_model, **DROPOUT) as rank:
        folder = save(rank, tmp_path)
        _, straight = after(rank, 0)
        rank.load_checkpoint(folder)
        torch.manual_seed(12345)
        _, other = after(rank, 0)
    assert apart(other, straight) > 0


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_refused_step_leaves_the_schedule_where_it_was(
    odd_model: str, tmp_path: Path, zero_stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SCHEDULE | {"num_iterations": 1, "zero_stage": zero_stage}
    with started(odd_model, **settings) as rank:
        after(rank, 0, 1)
        backward = rank._engine.backward
        with monkeypatch.context() as patched:
            patched.setattr(rank._engine, "backward", lambda loss, *, last: backward(loss * math.nan, last=last))
            with pytest.raises(NonFiniteLossError):
                update(rank, 2)
        folder = save(rank, tmp_path)
        straight = after(rank, 2)
    assert Path(folder).name == "step-000002"
    assert straight[0][0].values["learning_rate"] == pytest.approx(1e-3 * 2 / 3)  # the third of warm-up's 0, 1/3, 2/3
    with started(odd_model, **settings) as rank:
        rank.load_checkpoint(folder)
        assert after(rank, 2) == straight


def test_before_the_first_step(odd_model: str, tmp_path: Path) -> None:
    with started(odd_model) as rank:
        folder = save(rank, tmp_path)
        straight = after(rank, 0)
        rank.load_checkpoint(folder)
        assert after(rank, 0) == straight


def test_what_lies_in_it(odd_model: str, tmp_path: Path) -> None:
    with started(odd_model, keep_checkpoints=1) as rank:
        save(rank, tmp_path)
        update(rank, 0)
        folder = Path(save(rank, tmp_path))
    assert names(tmp_path) == ["step-000001"]
    assert names(folder) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "exp_avg.safetensors",
        "exp_avg_sq.safetensors",
        "learner.json",
        "manifest.json",
        "note.txt",
        "parameters.safetensors",
        "random.safetensors",
    ]


def test_a_rate_may_change_but_not_the_adapter(odd_model: str, tmp_path: Path) -> None:
    with started(odd_model) as rank:
        update(rank, 0)
        folder = save(rank, tmp_path)
    with started(odd_model, learning_rate=5e-4) as rank:
        rank.load_checkpoint(folder)
        assert update(rank, 1).values["learning_rate"] == 5e-4
    lora = {"r": 4, "lora_alpha": 6, "target_modules": ("q_proj",)}
    with started(odd_model, lora=lora) as rank:
        before = after(rank)
        with pytest.raises(LearnerError) as caught:
            rank.load_checkpoint(folder)
        assert after(rank)[1] == before[1]
    assert "lora.r was 3, is 4; lora.target_modules was ['down_proj'," in str(caught.value)
    assert "lora_alpha" not in str(caught.value)


def test_other_parameters_are_named() -> None:
    then = {name: torch.zeros(2, 3) for name in ("a", "b", "c")}
    refuse_other_parameters(then, dict.fromkeys("abc", (2, 3)))
    with pytest.raises(LearnerError) as caught:
        refuse_other_parameters(then, {"a": (2, 3), "b": (3, 3), "d": (1,), "e": (1,)})
    assert "b was (2, 3), is (3, 3); c is not trained here; d is missing; and 1 more" in str(caught.value)


def test_another_model(odd_model: str, llama: str, tmp_path: Path) -> None:
    with started(odd_model) as rank:
        folder = save(rank, tmp_path / "checkpoints")
    with started(llama) as rank, pytest.raises(LearnerError, match=f"the base model was {odd_model}, is {llama}"):
        rank.load_checkpoint(folder)
    moved = tmp_path / "moved"
    moved.symlink_to(odd_model)
    with started(str(moved)) as rank:  # the same weights elsewhere
        rank.load_checkpoint(folder)


def test_a_folder_that_is_no_checkpoint(odd_model: str, tmp_path: Path) -> None:
    with started(odd_model) as rank:
        with pytest.raises(LearnerError, match=r"not a whole checkpoint: manifest\.json is missing"):
            rank.load_checkpoint(str(tmp_path))
        with pytest.raises(LearnerError, match=r"learner\.json is missing"):
            rank.load_checkpoint(str(write(tmp_path, 1)))


# --- Ranks

STAGES = (0, 2, 3)
Outcome = tuple[list[UpdateMetrics], dict[str, bytes]]


def on_two_ranks(rank: LearnerRank, model_path: str, folder: str) -> dict[str, dict[int, Outcome | str]]:
    """Everything that two processes are needed for; starting them is the expensive part."""
    found: dict[str, dict[int, Outcome | str]] = {"straight": {}, "resumed": {}, "plain": {}, "from_one": {}}
    for stage in STAGES:
        random = SCHEDULE | DROPOUT | {"zero_stage": stage}
        with beside(rank, model_path, **random) as other:
            after(other, 0, 1)
            saved = save(other, Path(folder) / f"random-{stage}")
            found["straight"][stage] = after(other, 2, 3)
        torch.manual_seed(12345)
        with beside(rank, model_path, **random) as other:
            other.load_checkpoint(saved)
            found["resumed"][stage] = after(other, 2, 3)
        with beside(rank, model_path, zero_stage=stage) as other:
            after(other, 0, 1)
            save(other, Path(folder) / f"plain-{stage}")
            found["plain"][stage] = after(other, 2)
            other.load_checkpoint(f"{folder}/one/step-000002")
            found["from_one"][stage] = after(other, 2)
    occupied = Path(folder) / "occupied"
    if rank._rank == 0:
        occupied.write_text("a file where the folder should be")
    try:
        save(rank, occupied)
    except LearnerError as error:
        found["refused"] = {0: str(error)}
    return found


@pytest.mark.slow
def test_two_ranks_go_on_bit_for_bit_and_other_numbers_within_1e_6(odd_model: str, tmp_path: Path) -> None:
    with started(odd_model) as rank:
        after(rank, 0, 1)
        save(rank, tmp_path / "one")
        one = after(rank, 2)
    config = LearnerConfig(**(BASE | {"num_ranks": 2}))
    first, second = run_ranks(2, odd_model, config, on_two_ranks, odd_model, str(tmp_path))
    for stage in STAGES:
        assert first["resumed"][stage] == first["straight"][stage]
        assert second["resumed"][stage][0] == second["straight"][stage][0]
        assert apart(first["from_one"][stage][1], one[1]) < 1e-6
        for loading in STAGES:
            with started(odd_model, zero_stage=loading) as rank:
                assert rank.load_checkpoint(str(tmp_path / f"plain-{stage}" / "step-000002")) == 2
                metrics, files = after(rank, 2)
            assert apart(files, first["plain"][stage][1]) < 1e-6
            assert metrics[0].values["loss"] == pytest.approx(first["plain"][stage][0][0].values["loss"], abs=1e-6)
    # A failure on the rank that writes is every rank's, and none waits for ever.
    assert first["refused"] == second["refused"]
    assert "cannot write checkpoint" in first["refused"][0]


def failing_on_one_rank(rank: LearnerRank, folder: str) -> list[str]:
    """What each rank is told of failures that one of them meets, and what they can still do together."""
    told = []

    def attempt(action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}")

    first, copy_to = rank._rank == 0, torch.Tensor.to

    def no_memory(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if options.get("copy"):
            raise MemoryError("no memory for a copy")
        return copy_to(tensor, *arguments, **options)

    update(rank, 0)
    attempt(rank.save_checkpoint, folder, {"a/b": b""})
    with pytest.MonkeyPatch.context() as patched:
        if first:
            patched.setattr(torch.Tensor, "to", no_memory)
        attempt(rank.save_checkpoint, folder, {})
    with pytest.MonkeyPatch.context() as patched:
        if first:
            patched.setattr(rank, "_files", {}.__getitem__)
        attempt(rank.save_checkpoint, folder, {})
    saved = save(rank, Path(folder))
    attempt(rank.load_checkpoint, saved if first else f"{folder}/elsewhere")
    assert rank.load_checkpoint(saved) == 1
    return [*told, str(update(rank, 1).step)]


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_what_fails_on_one_rank_fails_on_both_and_none_waits(odd_model: str, tmp_path: Path, zero_stage: int) -> None:
    config = LearnerConfig(**(BASE | {"num_ranks": 2, "zero_stage": zero_stage, "start_timeout_s": 60}))
    first, second = run_ranks(2, odd_model, config, failing_on_one_rank, str(tmp_path))
    assert len(first) == len(second) == 5
    for own, theirs in zip(first[:3], second[:3], strict=True):
        assert theirs == f"LearnerError: {own}"
    assert "'a/b' is taken, or not a plain file name" in first[0]
    assert first[1] == "MemoryError: no memory for a copy"
    assert "TypeError" in first[2]
    assert first[3] == second[3]
    assert "elsewhere" in first[3]
    assert first[4] == second[4] == "2"


@pytest.mark.parametrize("heads", [(), HEADS])
def test_an_adapter_alone_is_gone_on_from_with_a_new_optimizer(
    tmp_path: Path, odd_model: str, heads: tuple[str, ...]
) -> None:
    settings = {"lora": {"r": 3, "lora_alpha": 6, "modules_to_save": heads}} | SCHEDULE
    with started(odd_model, **settings) as rank, beside(rank, odd_model, **settings) as other:
        _, trained = after(rank, 1, 2)
        folder = write_checkpoint(tmp_path, 2, trained.items(), keep=1)
        assert other.load_checkpoint(str(folder)) == 2
        assert dict(other.export_adapter().files) == trained
        rate = update(other, 3).values["learning_rate"]
        assert rate == update(rank, 3).values["learning_rate"]  # the schedule goes on where it was
        assert apart(dict(other.export_adapter().files), dict(rank.export_adapter().files)) > 0  # AdamW begins anew
        config = json.loads(trained[ADAPTER_CONFIG])
        for changed, complaint in (
            ({"lora_alpha": 12}, "lora_alpha was 12, is 6"),
            ({"use_rslora": True}, "use_rslora was True, is False"),
            ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern was {'q_proj': 8}, is {}"),
            ({"init_lora_weights": "pissa"}, "it was begun by pissa"),
        ):
            foreign = trained | {ADAPTER_CONFIG: json.dumps(config | changed).encode()}
            folder = write_checkpoint(tmp_path / complaint[:5], 2, foreign.items(), keep=1)
            with pytest.raises(LearnerError, match=f"is not made as this run's: {re.escape(complaint)}"):
                other.load_checkpoint(str(folder))
