"""The whole system on the tiny model: real Ray, vLLM, DeepSpeed and HTTP, started as a user starts it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import pyarrow.parquet
import pytest

from learner.checkpoint import checkpoint_steps
from orchestration.cluster.upkeep.sessions import KEEP
from orchestration.evals import lm_eval
from orchestration.models.prompting import make_prompt_builder
from orchestration.models.resolve import resolve_model
from orchestration.run.ledger.names import AUDIT_FILE
from orchestration.run.ledger.records import record_path, recorded_steps
from orchestration.settings.config import load_config
from tests.orchestration.cluster.kill_points import differing_steps, training
from tests.orchestration.cluster.test_faults import fork_server
from tests.reward_service.clients.callers.installed import installed, run_script
from tests.reward_service.clients.test_callers_lm_eval import LM_EVAL
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

RLVR = (sys.executable, "-m", "orchestration.cli")
CURRICULUM = ("data.num_train=40", 'curriculum.weights={"0": 2}', "curriculum.target_pass_rate=0.5")
"""Few problems, so that some are drawn again, and what was measured of them decides."""


def rlvr(*words: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RLVR, *words], env=environment, capture_output=True, text=True, timeout=600, check=False)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@dataclass(frozen=True)
class Finished:
    """A finished run, and what it left."""

    folder: Path
    output: str
    ray_folder: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """The recipe `tiny`, with its reward service in the cluster; other runs here have it beside the driver."""
    run = tmp_path_factory.mktemp("trained") / "run"
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short, as sockets lie in it
    words = ("train", "tiny", f"run_dir={run}", "dashboard=false", "reward.deployment=actor", *CURRICULUM)
    folders = {"RAY_TMPDIR": str(ray_folder), "TMPDIR": str(ray_folder), KEEP: "1"}
    done = rlvr(*words, environment={**os.environ, **folders})
    assert done.returncode == 0, done.stdout + done.stderr
    yield Finished(run, done.stdout + done.stderr, ray_folder)
    shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.fixture
def trained(finished: Finished) -> Path:
    return finished.folder


def test_training_raises_the_reward(trained: Path) -> None:
    reward = [row["reward_mean"] for row in rows(trained)]
    assert mean(reward[-3:]) > mean(reward[:3]) + 0.1
    summary = json.loads((trained / "summary.json").read_text())
    phases = {"command", "checks", "model", "ray", "reward_service", "engines", "learner", "evaluation", "first_step"}
    assert summary["start_s"].keys() == phases | {"total"}
    assert max(summary["start_s"].values()) == summary["start_s"]["total"]
    assert summary["status"] == "finished"
    strict = summary["accuracy"]["strict"]
    assert strict["after"] > strict["before"]
    assert strict["difference"]["low"] > 0


def test_the_reward_service_ended_in_order_and_its_key_is_in_no_file(finished: Finished) -> None:
    assert "the reward service is on node " in finished.output
    assert "did not have its group scored" not in finished.output, "workers ask it themselves, with the key"
    log = (finished.folder / "logs" / "reward_service.log").read_text()
    (pid,) = re.findall(r"Started server process \[(\d+)\]", log)
    assert "Application shutdown complete" in log
    assert not psutil.pid_exists(int(pid))
    key = re.compile(rb"rlvr_[0-9a-f]{12}_[A-Za-z0-9_-]{43}")
    assert not key.search(finished.output.encode())
    files = [path for folder in (finished.folder, finished.ray_folder) for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("worker-") for path in files)  # what the actors print
    assert [path for path in files if key.search(path.read_bytes())] == []


def test_nothing_but_what_was_asked_for_is_left_among_temporary_files(finished: Finished) -> None:
    assert [path.name for path in finished.ray_folder.iterdir()] == ["ray"]


def test_what_the_learner_made_of_the_model_is_said(finished: Finished) -> None:
    assert "adapters of rank " in finished.output


def test_every_update_was_served_and_on_policy(trained: Path) -> None:
    for row in rows(trained):
        assert row["policy_age_max"] == 0
        assert abs(row["kl_to_sampler"]) < 1e-3
        assert row["probe_difference"] < 1e-3
        table = pyarrow.parquet.read_table(trained / "completions" / f"step-{row['step']:06d}.parquet")
        assert set(table["adapter_version"].to_pylist()) == {row["step"] - 1}
        ratios = [ratio for own in table["importance_log_ratios"].to_pylist() for ratio in own or ()]
        assert len(ratios) == row["num_loss_tokens"]
        assert max(map(abs, ratios)) <= row["sampling_logprob_difference_max"] + 1e-3


def test_the_runs_own_rates_and_lengths_explain_its_steps(trained: Path) -> None:
    done = rlvr("plan", "--check", str(trained), "--json")
    (check,) = json.loads(done.stdout)
    assert done.returncode == (0 if check["holds"] else 1), done.stderr
    assert -0.5 < check["error"] < 1.0  # on a machine whose neighbours come and go while it runs
    assert check["predicted"]["learning_s"] > 0 < check["measured"]["learning_s"]


def test_the_adapter_loads_elsewhere_with_plain_peft(trained: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    moved = shutil.copytree(trained / "adapter", tmp_path / "given away")
    assert PeftConfig.from_pretrained(str(moved)).base_model_name_or_path == "tiny"
    assert AutoTokenizer.from_pretrained(moved).decode([5, 6]) != ""
    card = (moved / "README.md").read_text()
    assert "base_model: tiny" in card
    assert "| strict | " in card
    assert str(trained.parent) not in card
    base = AutoModelForCausalLM.from_pretrained(resolve_model("tiny"), dtype=torch.float32)
    token_ids = torch.arange(1, 9).unsqueeze(0)
    with torch.no_grad():
        before = base(token_ids).logits.clone()
        after = PeftModel.from_pretrained(base, str(moved))(token_ids).logits
    assert not torch.allclose(before, after, atol=1e-3)


def test_eval_of_base_and_adapter_is_the_same_when_it_was_broken_off(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    where = ("--model", "tiny", "--adapter", f"{trained}/adapter", "--data", f"{trained}/config.yaml")
    words = ("eval", *where, "--json", "--lm-eval-compatible", "--samples", "2", "--out", str(out))
    done = rlvr(*words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["held_out"]
    greedy = {side: found["sides"][side]["greedy"] for side in ("base", "adapter")}
    assert greedy["adapter"]["strict_match"]["estimate"] == 0  # of the article's line, which lm-eval does not read
    for name, other in (("flexible_extract", "lenient"), ("strict", "strict")):
        assert greedy["adapter"][name]["estimate"] == pytest.approx(greedy["adapter"][other]["estimate"], abs=0.02)
    accuracy = json.loads((trained / "summary.json").read_text())["accuracy"]["strict"]
    assert greedy["adapter"]["strict"]["estimate"] == pytest.approx(accuracy["after"], abs=0.02)
    assert greedy["base"]["strict"]["estimate"] == pytest.approx(accuracy["before"], abs=0.02)
    assert found["difference"]["greedy"]["strict"]["low"] > 0
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for batch in sorted((out / "answers").iterdir())[1::2]:  # as one that was killed on its way: these are missing
        batch.unlink()
    (out / "results.json").unlink()
    assert rlvr(*words).stdout == done.stdout
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == files


def test_a_claim_of_the_run_and_lm_evals_own_model_on_the_same_prompts(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "claim"
    sizes = ("--limit", "24", "--train-problems", "8", "--article-tokens", "24")
    done = rlvr("claim", str(trained), *sizes, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "yes   No held-out question is in the training problems or in the header" in done.stdout
    assert "open  That the gain comes from the rewards is not shown" in done.stdout
    found = json.loads((out / "claim.json").read_text())
    assert found["claims"][0]["text"] in (out / "claim.html").read_text()
    assert found["results"]["train"]["sides"]["adapter"]["greedy"]["article"]["num_problems"] == 8
    table = pyarrow.parquet.read_table(out / "evaluation" / "answers.parquet").to_pylist()
    ours = {row["problem_id"]: row for row in table if (row["side"], row["part"]) == ("adapter", "held_out")}

    config = load_config(str(trained / "config.yaml"), ["data.num_eval=24"])
    problems = config.data.load()
    model = resolve_model("tiny")
    built = make_prompt_builder(config, problems, model).build_all(problems.eval).prompts
    asked = {"prompts": [one.text for one in built], "until": list(lm_eval.STOPS), "max_gen_toks": 24}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    folder = installed("lm-eval-0.4.13", *LM_EVAL)
    theirs = run_script(folder, "lm_eval_model.py", str(model), str(trained / "adapter"), str(tmp_path / "asked.json"))
    for one, text in zip(built, theirs, strict=True):
        row = ours[one.problem.problem_id]
        answer = str(one.problem.reference["final_answer"])
        assert text.strip() == lm_eval.cut(row["run_on"]).strip()
        assert lm_eval.flexible_extract(text, answer) == row["score_flexible_extract"]


def test_a_run_that_is_ended_again_and_again_makes_the_same_steps_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as a step is recorded, before its row is written; SIGTERM to all processes as soon as one is
    written, in the next step's generation; and SIGKILL in the middle of a checkpoint, beside a step that was asked for
    twice. The other run was never disturbed, and had its rewards elsewhere."""
    run = tmp_path / "run"
    words = ("tiny", "dashboard=false", "save_every=4", *CURRICULUM)
    with training(run, words) as process:
        wait_until(lambda: record_path(run, 1).is_file(), process)
        process.kill()
    with training(run, words) as process:
        wait_until(lambda: (run / "metrics.jsonl").is_file() and len(rows(run)) >= 3, process)
        for each in (newest_rank(), *psutil.Process(process.pid).children(recursive=True), process):  # as systemd does
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    stopped_after = json.loads((run / "summary.json").read_text())["steps"]
    assert stopped_after in checkpoint_steps(run / "checkpoints")
    with training(run, words) as process:
        wait_until(lambda: any((run / "checkpoints").glob("*step-000004*")), process)
        process.kill()
    assert recorded_steps(run)[-1] >= max(4, stopped_after)
    assert differing_steps(trained, run) == []


def test_a_recorded_step_is_learned_again_alone_and_gives_the_same_adapter(trained: Path) -> None:
    done = rlvr("replay", str(trained), "3", "--compare")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 3 learned again, from the beginning: figures and adapter are the recorded ones" in done.stdout


def test_a_recorded_step_is_sampled_again(trained: Path) -> None:
    done = rlvr("replay", str(trained), "2", "--rollout", "--compare", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["same_logprobs"] == 64


WHOLE = ("learner.quantization=nf4", "learner.lora.modules_to_save=[embed_tokens,lm_head]")


def test_sigterm_in_an_update_that_hangs_loses_that_update_alone(tmp_path: Path) -> None:
    """With modules that are trained whole beside a 4-bit base, so that both starts and the log show those too."""
    run, grace_s = tmp_path / "run", 3.0
    settings = ("tiny", "dashboard=false", "data.num_eval=8", "eval_at_ends=false", "audit=true", *WHOLE)
    with training(run, [*settings, "max_steps=1000", f"stop_grace_s={grace_s}"]) as process:
        wait_until(lambda: record_path(run, 1).is_file(), process, poll_s=0.01)
        rank = newest_rank()
        wait_until(lambda: (run / "metrics.jsonl").is_file() and len(rows(run)) >= 1, process, poll_s=0.01)
        rank.suspend()  # early in the generation of step 2
        wait_until(lambda: num_scored(run, version=1) == 64, process)  # all that its update waits for
        asked = time.monotonic()
        process.terminate()
        wait_until((run / "summary.json").is_file, process)
        assert time.monotonic() - asked < grace_s + 5
        output, _ = process.communicate(timeout=120)
        print(f"ended {time.monotonic() - asked:.1f} s after SIGTERM")
    assert process.returncode == 130, output
    assert "step 2 was abandoned: its update took over stop_grace_s=3 s" in output
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"], recorded_steps(run)) == ("stopped", 1, [1])
    assert (run / "adapter" / "adapter_model.safetensors").is_file()

    steps = summary["steps"] + 1
    done = rlvr("train", *settings, f"run_dir={run}", f"max_steps={steps}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["step"] for row in rows(run)] == list(range(1, steps + 1))
    assert f"going on after step {steps - 1}" in done.stdout

    proved = rlvr("trace", str(run), "--verify", "--json")  # over both starts, and both services
    assert proved.returncode == 0, proved.stdout + proved.stderr
    assert json.loads(proved.stdout)["facts"]["completions"] == 64 * steps
    traced = json.loads(rlvr("trace", str(run), "1/0/0", "--gradient", "--json").stdout)
    assert traced["audit"]["findings"] == []
    assert traced["gradient"]["equal"]
    if traced["gradient"]["in_loss"]:
        assert traced["gradient"]["step_norm"] == pytest.approx(rows(run)[0]["grad_norm"], rel=1e-4)

    assert "every publish waits until generation has drained" in done.stdout
    assert_modules_trained_whole_are_served(run)


def assert_modules_trained_whole_are_served(run: Path) -> None:
    """The probes prove that the whole tensors arrive; the divergence from the sampler, that it has the same base."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for row in rows(run):
        assert row["probe_difference"] < 1e-3
        assert abs(row["kl_to_sampler_k3"]) < 1e-5
    base = AutoModelForCausalLM.from_pretrained(resolve_model("tiny"), dtype=torch.float32)
    trained = PeftModel.from_pretrained(base, str(run / "adapter")).get_base_model()
    embeddings = trained.get_input_embeddings()
    assert embeddings.weight is trained.get_output_embeddings().weight
    assert not torch.equal(embeddings.weight, embeddings.original_module.weight)


def newest_rank() -> psutil.Process:
    """The learner's process: of those that the fork server of these tests made, the newest that has no engine core."""
    ranks = [process for process in fork_server().children() if not process.children()]
    return max(ranks, key=lambda process: process.create_time())


def num_scored(run: Path, *, version: int) -> int:
    """Completions of an adapter that the audit log holds."""
    with closing(sqlite3.connect(f"file:{run / AUDIT_FILE}?mode=ro", uri=True)) as log:
        asked = log.execute("SELECT num_items FROM audit_records WHERE policy_version = ?", (version,))
        return sum(number for (number,) in asked)


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 300.0, poll_s: float = 0.2
) -> None:
    def is_met() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return condition()

    until(is_met, timeout_s, poll_s=poll_s)
