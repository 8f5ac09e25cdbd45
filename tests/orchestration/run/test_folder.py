import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from learner.types import LogRatios, ScoredCompletion, ScoredGroup
from orchestration.errors import ConfigError, MachineError, RlvrError
from orchestration.run.ledger.folder import RunFolder, plain_name
from orchestration.run.ledger.rows import RowsFile
from orchestration.settings.config import RunConfig, load_config
from orchestration.storage.atomic import atomic_write
from rollout_server.types import Completion, FinishReason
from tests.orchestration.fakes import record_of


def config_for(path: Path | str | None, **settings: object) -> RunConfig:
    return RunConfig(run_dir=None if path is None else str(path), **settings)


def open_folder(path: Path) -> RunFolder:
    return RunFolder.create(config_for(path))


def rows_of(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def names_in(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Files of this process cannot grow beyond it: the kernel then writes a part and refuses the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- making and taking over a folder


def test_a_new_folder_is_named_after_recipe_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [RunFolder.create(config_for(None, recipe="my recipe/x")) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3  # also within one second
    for folder in folders:
        assert re.fullmatch(r"runs/my-recipe-x-\d{8}-\d{6}(-\d)?", str(folder.path))


def test_the_resolved_configuration_is_saved(tmp_path: Path) -> None:
    config = config_for(tmp_path / "deep" / "run", max_steps=7)
    folder = RunFolder.create(config)
    assert load_config(str(folder.path / "config.yaml")) == config


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder.create(config_for("~/run")).path == tmp_path / "run"


def test_an_empty_folder_may_hold_hidden_files(tmp_path: Path) -> None:
    (tmp_path / ".gitkeep").touch()
    assert open_folder(tmp_path).path == tmp_path


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(ConfigError, match="not empty and not a run's folder; choose another run_dir"):
        open_folder(tmp_path)
    assert names_in(tmp_path) == {"thesis.tex"}


@pytest.mark.parametrize(
    ("summary", "why"),
    [
        ('{"status": "finished"}', "holds a finished run"),
        *((text, "cannot be read") for text in ("{}", "[]", "broken")),
    ],
)
def test_a_finished_run_is_refused(tmp_path: Path, summary: str, why: str) -> None:
    open_folder(tmp_path).close()
    (tmp_path / "summary.json").write_text(summary)
    with pytest.raises(ConfigError, match=rf"{why}.*choose another run_dir"):
        open_folder(tmp_path)
    assert (tmp_path / "summary.json").read_text() == summary


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_an_unfinished_run_is_taken_over(tmp_path: Path, status: str) -> None:
    first = open_folder(tmp_path)
    first.write_summary({"status": status})
    first.close()
    open_folder(tmp_path)
    assert not (tmp_path / "summary.json").exists()  # it is going on


def test_a_running_run_is_refused(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    with pytest.raises(ConfigError, match="another run is writing to run_dir="):
        open_folder(tmp_path)
    folder.append_metrics({"step": 1})
    folder.close()
    open_folder(tmp_path)


def test_two_runs_that_start_at_once_do_not_meet_and_a_start_that_was_killed_is_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()  # all that is there before the settings are
    starting = RowsFile(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match="another run is writing to run_dir="):
        open_folder(tmp_path)
    starting.close()
    open_folder(tmp_path)


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no text in UTF-8; choose another run_dir"):
        open_folder(tmp_path / "a\udcff")


@pytest.mark.parametrize(("name", "plain"), [("run-1", "run-1"), ("ein Lauf über", "ein-Lauf-ber"), ("ü", "run")])
def test_a_name_in_rays_labels_and_files(name: str, plain: str) -> None:
    assert plain_name(name) == plain
    assert len(plain_name("n" * 255)) == 64


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=r"cannot write .*; choose another run_dir"):
            open_folder(path)


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no sysfs, in which not even root may make folders")
def test_a_folder_that_may_not_be_made() -> None:
    with pytest.raises(ConfigError, match=r"cannot write /sys/kernel/run: .*; choose another run_dir"):
        open_folder(Path("/sys/kernel/run"))


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with file_size_limit(10), pytest.raises(RlvrError, match=r"cannot write .*File too large"):
        open_folder(tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- metrics.jsonl


def test_rows_are_lines_and_non_finite_numbers_null(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.append_metrics({"step": 1, "loss": float("nan"), "kl": float("-inf"), "note": "ä\n\ud800"})
    folder.append_metrics({"step": 2, "loss": 0.5, "nested": {"x": [float("inf"), 1]}})
    assert rows_of(folder) == [
        {"step": 1, "loss": None, "kl": None, "note": "ä\n?"},
        {"step": 2, "loss": 0.5, "nested": {"x": [None, 1]}},
    ]


def test_a_row_is_in_the_file_when_the_call_returns(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.append_metrics({"step": 1})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'


def test_half_a_line_of_a_killed_run_is_cut_off(tmp_path: Path) -> None:
    open_folder(tmp_path).close()
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    folder = open_folder(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'
    folder.append_metrics({"step": 2})
    assert [row["step"] for row in rows_of(folder)] == [1, 2]


def test_a_resumed_run_replaces_the_steps_it_does_again(tmp_path: Path) -> None:
    first = open_folder(tmp_path)
    for step in range(1, 6):
        first.append_metrics({"step": step, "run": "first"})
        first.write_table(record_of(step, [scored_group()]))
    first.close()
    second = open_folder(tmp_path)  # its checkpoint was of step 3
    second.write_table(record_of(4, [scored_group()]))
    second.append_metrics({"step": 4, "run": "second"})
    assert [(row["step"], row["run"]) for row in rows_of(second)] == [
        (1, "first"),
        (2, "first"),
        (3, "first"),
        (4, "second"),
    ]
    assert names_in(tmp_path / "completions") == {f"step-{step:06d}.parquet" for step in range(1, 5)}
    aside = tmp_path / "set-aside" / "1"  # nothing that was there is erased
    assert [json.loads(line)["step"] for line in (aside / "metrics.jsonl").read_text().splitlines()] == [4, 5]
    assert names_in(aside) == {"metrics.jsonl", "step-000004.parquet", "step-000005.parquet"}


def test_a_damaged_line_and_all_after_it_are_dropped(tmp_path: Path) -> None:
    open_folder(tmp_path).close()
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\nnonsense\n{"step": 2}\n')
    folder = open_folder(tmp_path)
    folder.append_metrics({"step": 3})
    assert [row["step"] for row in rows_of(folder)] == [1, 3]


def test_a_write_that_fails_half_way_is_taken_back(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.append_metrics({"step": 1})
    with file_size_limit(30), pytest.raises(RlvrError, match=r"cannot write .*metrics\.jsonl: File too large"):
        folder.append_metrics({"step": 2, "long": "x" * 100})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'
    folder.append_metrics({"step": 2})  # there is space again
    assert [row["step"] for row in rows_of(folder)] == [1, 2]


def test_rows_that_are_mended_where_there_is_no_room_are_what_they_were(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.append_metrics({"step": 2})
    record = record_of(1, [scored_group()])
    folder.write_table(record)
    with file_size_limit(15), pytest.raises(RlvrError, match=r"cannot write .*metrics\.jsonl: File too large"):
        folder.mend([record])
    assert rows_of(folder) == [{"step": 2}]
    folder.mend([record])
    folder.append_metrics({"step": 3})
    assert [row["step"] for row in rows_of(folder)] == [1, 2, 3]
    with pytest.raises(ConfigError, match="another run is writing"):
        open_folder(tmp_path)


def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    open_folder(tmp_path).close()
    (tmp_path / "metrics.jsonl").unlink()
    folder = open_folder(tmp_path)
    folder._rows._file.close()
    folder._rows._file = FileIO("/dev/full", "ab")
    folder._rows.is_there = lambda: True  # type: ignore[method-assign]
    folder._first_write = False
    with pytest.raises(MachineError, match="No space left on device; free some space or choose another run_dir"):
        folder.append_metrics({"step": 1})
    folder.close()


# --- completions


def scored_group(text: str = "#### 4", reward: float | None = 1.0) -> ScoredGroup:
    completion = Completion(
        prompt_id="p",
        token_ids=(5, 6, 7),
        sampling_logprobs=(-0.1, -0.2, -0.3),
        text=text,
        finish_reason=FinishReason.LENGTH,
        adapter_version=2,
    )
    scored = ScoredCompletion(completion=completion, rewards=(reward,), total=reward)
    return ScoredGroup(prompt_id="p", prompt_token_ids=(1,), members=(scored,))


def test_completions_are_parquet_with_a_row_each(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    (unscored,) = scored_group("bad \ud800", None).members
    groups = [scored_group(), replace(scored_group(), members=(replace(unscored, reasons=("timeout",)),))]
    record = record_of(12, groups, {"p": "What is 2+2?"}, advantages=((0.5,), (None,)))
    record = replace(record, update=replace(record.update, log_ratios=((LogRatios((250, -1000, 0)),), (None,))))
    folder.write_table(replace(record, references={"p": '{"reference": {"final_answer": "4"}, "metadata": {}}'}))
    assert parquet.read_table(tmp_path / "completions" / "step-000012.parquet").to_pylist() == [
        {
            "step": 12,
            "completion_id": f"12/{index}/0",
            "category": "",
            "prompt_id": "p",
            "prompt": "What is 2+2?",
            "completion": completion,
            "reference": '{"final_answer": "4"}',
            "metadata": "{}",
            "reward_exact": reward,
            "reason_exact": reason,
            "total": reward,
            "advantage": advantage,
            "item_id": None,
            "adapter_version": 2,
            "finish_reason": "length",
            "num_tokens": 3,
            "turns": [],
            "failure": None,
            "token_ids": [5, 6, 7],
            "sampling_logprobs": pytest.approx([-0.1, -0.2, -0.3]),
            "importance_log_ratios": None if index else [0.25, -1.0, 0.0],
        }
        for index, (completion, reward, reason, advantage) in enumerate(
            (("#### 4", 1.0, None, 0.5), ("bad ?", None, "timeout", None))
        )
    ]


def test_columns_do_not_change_type_with_their_values(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.write_table(record_of(1, [scored_group()], advantages=((0.5,),)))
    folder.write_table(record_of(2, [scored_group(reward=None)]))
    some, none = (parquet.read_schema(tmp_path / "completions" / f"step-00000{step}.parquet") for step in (1, 2))
    assert some == none


def test_advantages_of_another_shape_are_a_mistake(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    with pytest.raises(ValueError, match="advantage"):
        folder.write_table(record_of(1, [scored_group()], advantages=((0.5, 0.5),)))
    assert not (tmp_path / "completions").exists()


# --- adapter, summary, atomic_write


def test_the_adapter_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.write_adapter([("adapter_config.json", b"{}"), ("old_only.bin", b"1")])
    path = folder.write_adapter([("adapter_config.json", b"{2}")])
    assert path == tmp_path / "adapter"
    assert names_in(path) == {"adapter_config.json"}
    assert names_in(tmp_path) == {"config.yaml", "metrics.jsonl", "adapter"}


def test_a_tied_tensor_travels_once_and_is_written_under_each_of_its_names(tmp_path: Path) -> None:
    from safetensors.numpy import load, save

    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    files = [
        ("adapter_config.json", b"{}"),
        ("adapter_model.safetensors", save({"embed_tokens": rows, "lora_A": rows})),
    ]
    path = open_folder(tmp_path).write_adapter(files, [("lm_head", "embed_tokens")])
    written = load((path / "adapter_model.safetensors").read_bytes())
    assert written.keys() == {"embed_tokens", "lora_A", "lm_head"}
    assert np.array_equal(written["lm_head"], rows)
    assert (path / "adapter_config.json").read_bytes() == b"{}"


def test_an_adapter_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.write_adapter([("weights", b"old")])
    with file_size_limit(100), pytest.raises(RlvrError, match=r"cannot write .*adapter"):
        folder.write_adapter([("config", b"new"), ("weights", b"x" * 1000)])
    assert (tmp_path / "adapter" / "weights").read_bytes() == b"old"
    assert names_in(tmp_path) == {"config.yaml", "metrics.jsonl", "adapter"}


def test_an_adapter_lost_between_two_renames_comes_back(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.write_adapter([("weights", b"old")])
    folder.close()
    (tmp_path / "adapter").rename(tmp_path / ".adapter.old")  # as if killed right there
    (tmp_path / ".adapter.new").mkdir()
    open_folder(tmp_path)
    assert (tmp_path / "adapter" / "weights").read_bytes() == b"old"
    assert names_in(tmp_path) == {"config.yaml", "metrics.jsonl", "adapter"}


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "..", "/etc/x"])
def test_adapter_files_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a plain file name"):
        open_folder(tmp_path).write_adapter([(name, b"")])


def test_the_summary_is_strict_json(tmp_path: Path) -> None:
    path = open_folder(tmp_path).write_summary({"status": "finished", "kl": float("nan"), "by": {"x": (1, 2.5)}})
    assert json.loads(path.read_text()) == {"status": "finished", "kl": None, "by": {"x": [1, 2.5]}}


def test_atomic_write_replaces_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    with file_size_limit(10), pytest.raises(OSError, match="File too large"):
        atomic_write(path, b"three" * 10)
    assert path.read_bytes() == b"two"
    assert names_in(tmp_path) == {"file"}
