"""A run's folder as a run writes it, with rewards of the real service and its log; models alone are missing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

from learner.checkpoint import write_checkpoint
from learner.types import UNKNOWN, LogRatios, ScoredGroup, UpdateMetrics
from orchestration.cli import main
from orchestration.cluster.reward.deployment import reward_client
from orchestration.run.ledger.folder import RunFolder
from orchestration.run.ledger.names import AUDIT_FILE, TRAIL_FILE
from orchestration.run.ledger.records import given_to_rewards
from orchestration.run.ledger.trail import Trail, read_trail, sealed_files
from orchestration.run.scorer import HttpScorer
from orchestration.settings.config import RunConfig, load_config
from orchestration.trace.completion import trace_completion
from orchestration.trace.verify import Verified, verify_run
from orchestration.trace.words import verified_in_words
from orchestration.types import Problem
from rollout_server.types import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Completion, FinishReason
from tests.orchestration.fakes import record_of

STEPS = 3
ADVANTAGES = (0.5, -1.5, 1.0)
RATIOS = ((None, None, None), (LogRatios((0, 693)), LogRatios((0, UNKNOWN)), LogRatios((0, 0))))
PROBLEMS = [Problem(problem_id=f"p{n}", question=f"Repeat {n}.", reference={"final_answer": str(n)}) for n in (4, 7)]


async def write_run(config: RunConfig) -> None:
    folder = RunFolder.create(config)
    async with reward_client(config, folder.path / "logs", audit_log=folder.path / AUDIT_FILE) as client:
        scorer = HttpScorer(client, config.rewards, run_id=folder.path.name)
        for step in range(1, STEPS + 1):
            weights = f"adapter {step}".encode()
            groups = [await scored(scorer, problem, step) for problem in PROBLEMS]
            record = replace(
                record_of(step, groups, reward_names=scorer.reward_names),
                references={problem.problem_id: given_to_rewards(problem) for problem in PROBLEMS},
                adapter=hashlib.sha256(weights).hexdigest(),
                update=UpdateMetrics(step=step, advantages=(ADVANTAGES,) * len(groups), log_ratios=RATIOS),
                row={"step": step, "reward_mean": 0.5, "grad_norm": 0.25, "step_s": 1.0},
            )
            folder.write_record(record)
            folder.write_table(record)
            folder.write_adapter([(ADAPTER_CONFIG, b"{}"), (ADAPTER_WEIGHTS, weights)])
            folder.append_metrics({**record.row, "step_s": 2.0, "publish_ms": 3.0})
            folder.note_step(step, record.adapter)
    write_checkpoint(folder.path / "checkpoints", STEPS, [("state.json", b"{}")], keep=2)
    folder.write_summary({"status": "finished"})
    folder.seal()
    folder.close()


async def scored(scorer: HttpScorer, problem: Problem, step: int) -> ScoredGroup:
    texts = (f"#### The final answer is {problem.reference['final_answer']}", "#### The final answer is 1", f"{step}")
    completions = [
        Completion(
            prompt_id=problem.problem_id,
            text=text,
            token_ids=(5, 6),
            sampling_logprobs=(-0.5, -0.25),
            finish_reason=FinishReason.STOP,
            adapter_version=step - 1,
        )
        for text in texts
    ]
    members = await scorer.score(problem, "Q", completions)
    return ScoredGroup(prompt_id=problem.problem_id, prompt_token_ids=(1, 2), members=tuple(members))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("traced") / "run"
    asyncio.run(write_run(load_config("tiny", ["audit=true", f"run_dir={run}"])))
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy, under another name: what is kept in it does not depend on where it lies."""
    return shutil.copytree(made, tmp_path / "copy")


def test_an_unchanged_run_is_intact(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = [line.hash for line in read_trail(run)][-1]
    assert main(["trace", str(run), "--verify", "--expect-head", head]) == 0
    said = capsys.readouterr().out
    assert "intact: " in said
    assert f"{STEPS} records, {STEPS} tables, {STEPS} rows, {STEPS * 6} completions" in said
    assert main(["trace", str(run), "--verify", "--expect-head", "0" * 64]) == 1
    assert "it was written anew" in capsys.readouterr().out


def test_a_changed_byte_of_any_file_is_found_and_the_file_named(run: Path) -> None:
    files = [*sealed_files(run), run / TRAIL_FILE]
    kinds = {path.suffix for path in files}
    assert kinds >= {".yaml", ".jsonl", ".parquet", ".record", ".safetensors", ".json", ".sqlite3", ".log"}
    for path in files:
        content = path.read_bytes()
        for at in sorted({0, len(content) // 2, len(content) - 1}):
            path.write_bytes(content[:at] + bytes([content[at] ^ 0x01]) + content[at + 1 :])
            assert blamed(verify_run(run), path.relative_to(run).as_posix()), f"byte {at} of {path}"
        path.write_bytes(content)
    assert verify_run(run).intact


def blamed(found: Verified, name: str) -> bool:
    return any(finding.startswith(f"{name}:") for finding in found.findings)


def test_a_trail_that_is_gone_is_found(run: Path) -> None:
    """The settings say that there was one."""
    (run / TRAIL_FILE).unlink()
    assert blamed(verify_run(run), TRAIL_FILE)
    assert verified_in_words(verify_run(run)).splitlines()[-1].startswith("1 finding: ")


def test_what_is_missing_and_what_was_put_in_is_found(run: Path) -> None:
    (run / "completions" / "step-000002.parquet").rename(run / "completions" / "step-000009.parquet")
    findings = "\n".join(verify_run(run).findings)
    assert "completions/step-000002.parquet: missing" in findings
    assert "completions/step-000009.parquet: was put in" in findings


def test_a_trail_that_was_written_anew_is_held_against_record_and_log(run: Path) -> None:
    """Who changes a score and everything that is derived from it, trail included, is found by the service's log."""
    from orchestration.run.ledger.records import read_record, write_record
    from orchestration.run.ledger.tables import completions_table

    record = read_record(run, 2)
    group = record.groups_P[0]
    better = replace(group.members[2], rewards=(0.5, 1.0), total=1.5)
    changed = replace(group, members=(*group.members[:2], better))
    record = replace(record, groups_P=(changed, *record.groups_P[1:]))
    write_record(run, record)
    pyarrow.parquet.write_table(completions_table(record), run / "completions" / "step-000002.parquet")
    (run / TRAIL_FILE).unlink()
    trail = Trail(run)
    trail.begin()
    trail.end()
    (finding,) = verify_run(run).findings
    assert finding == (
        "audit.sqlite3: of completion 2/0/2 it has gsm8k_format 0.0, and not 0.5; gsm8k_correctness 0.0, and not 1.0; "
        "a total of 0.0, and not 1.5"
    )


def test_a_run_that_was_killed_is_verified_by_its_steps(run: Path) -> None:
    lines = (run / TRAIL_FILE).read_bytes().splitlines(keepends=True)
    (run / TRAIL_FILE).write_bytes(b"".join(lines[:-1]))
    found = verify_run(run)
    assert found.intact
    assert "the trail has no end" in found.notes[0]
    table = run / "completions" / "step-000001.parquet"
    table.write_bytes(table.read_bytes()[:-9] + b"x" + table.read_bytes()[-8:])
    assert blamed(verify_run(run), "completions/step-000001.parquet")


def test_a_completion_from_prompt_to_update(run: Path) -> None:
    found = trace_completion(run, "2/1/0")
    assert found["completion"] == "#### The final answer is 7"
    assert found["reference"] == {"final_answer": "7"}
    assert found["sampler"]["adapter_sha256"] == hashlib.sha256(b"adapter 1").hexdigest()
    assert {name: reward["score"] for name, reward in found["rewards"].items()} == {
        "gsm8k_format": 0.5,
        "gsm8k_correctness": 1.0,
    }
    assert len(found["rewards"]["gsm8k_correctness"]["version"]) == 64
    assert found["audit"]["findings"] == []
    assert found["audit"]["seq"] == 4
    assert found["advantage"] == 0.5
    assert found["group"]["advantages"] == list(ADVANTAGES)
    assert found["update"]["share_of_absolute_advantage"] == pytest.approx(0.5 / 6)
    assert found["importance"]["mean"] == pytest.approx(1.5, abs=1e-3)
    assert trace_completion(run, "2/1/1")["importance"]["ratios"] == [1.0, None]
    assert trace_completion(run, "2/0/0")["importance"] is None
    assert found["update"]["adapter_after"] == hashlib.sha256(b"adapter 2").hexdigest()


def test_it_is_told_in_words(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(run), "1/0/0"]) == 0
    said = capsys.readouterr().out
    assert "chain verified; prompt, completion and scores are those of the log" in said
    assert "by version 0 (adapter none: the base model): 2 tokens" in said
    assert "importance  not known: no part in the loss" in said
    assert main(["trace", str(run), "1/1/0"]) == 0
    assert "mean 1.500, from 1.000 (token 0) to 2.000 (token 1)" in capsys.readouterr().out
    assert main(["trace", str(run), "1/0/0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["update"]["step"] == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "give a completion's id, as 12/0/3, or --verify"),
        (["1/0/0", "--verify"], "give a completion's id, as 12/0/3, or --verify"),
        (["1-0-0"], "'1-0-0' is not a completion's id"),
        (["9/0/0"], "has no completions of step 9; it has those of steps 1 to 3"),
        (["1/0/3"], "has no completion 1/0/3: group 0 of step 1 has 3"),
        (["1/2/0"], "step 1 has no group 2"),
    ],
)
def test_wrong_usage_is_said(made: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(made), *words]) == 2
    assert complaint in capsys.readouterr().err


def test_a_log_needs_a_service_of_the_runs_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny", "audit=true", "reward.deployment=actor"]) == 2
    assert "audit=true keeps the reward service's log in the run folder" in capsys.readouterr().err


def test_a_run_is_scored_again_by_its_own_rewards_and_by_others(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rescore", str(run), "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert own["share_apart"] == 0
    assert {reward["num_other"] for reward in own["rewards"].values()} == {0}
    holey = "{name: regex, params: {pattern: '[27]$', mode: search}}"
    assert main(["rescore", str(run), holey, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdicts"] == {"both high": 3, "both low": 10, "only then": 3, "only now": 2, "not scored": 0}
    assert {one["completion"] for one in found["examples"]} <= {"2", "#### The final answer is 4"}
    results = pyarrow.parquet.read_table(found["results"])
    assert results["verdict"].to_pylist().count("only now") == 2
    assert verify_run(run).intact  # results are no part of the run


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nonsense"], "there is no 'nonsense'; there are"),
        (["json_schema"], "'json_schema' reads"),
        (["{name: regex"], "neither"),
        (["length", "--settings-file", "/nowhere"], "cannot read the settings"),
    ],
)
def test_rewards_that_cannot_score_a_run(
    made: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rescore", str(made), *words]) == 2
    assert complaint in capsys.readouterr().err


def test_a_run_at_a_glance(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alarm = {"kind": "alarm", "name": "one_shape", "step": 2, "sentence": "a word is paid"}
    events = [{"kind": "evaluation", "step": step, "accuracies": {"strict": step / 4}} for step in (0, 2)]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in [*events, alarm, alarm]))
    (run / "summary.json").unlink()
    ahead = time.time() + 3600  # of the clock of whoever writes it
    os.utime(run / "events.jsonl", (ahead, ahead))
    assert main(["watch", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "tiny on copy · under way" in shown
    assert re.search(r"3/10 · \d", shown)
    assert "3/10" in shown
    assert "strict 0.0 % → 50.0 % (after step 2)" in shown
    assert shown.count("! one_shape, step 2: a word is paid") == 1
    assert main(["watch", str(run / "logs")]) == 2
    assert "is not a run's folder" in capsys.readouterr().err
