"""A run as a job of a real Ray head with token authentication: what `rlvr submit` starts on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet
import pytest

from orchestration.errors import SubmitError
from orchestration.settings.config import load_settings
from orchestration.settings.submit import SubmitConfig
from orchestration.submit.common.job import JobSpec, JobState
from orchestration.submit.common.package import packed_code
from orchestration.submit.ray import local_head
from orchestration.submit.ray.cluster import RayBackend
from orchestration.submit.ray.jobs import RayJobs
from tests.listening import commands_of, family_of, open_to_others
from tests.proxies import RecordingProxy, recording_proxy
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

RLVR = (sys.executable, "-m", "orchestration.cli")
SMALL = (
    "eval_at_ends=false",
    "data.num_eval=8",
    "data.num_train=16",
    "prompts_per_step=2",
    "rollout.num_generations=4",
)
LINGER_S = 10
START_S = 240.0
"""Limit on what starts Ray, or an engine, on a busy machine."""


class Place:
    """A state folder, and commands that use it, in an environment that names a proxy."""

    def __init__(self, folder: Path, proxy: RecordingProxy) -> None:
        self.folder = folder
        self.environment = {**os.environ, **proxy.environment, "RLVR_STATE": str(folder / "state"), "HOME": str(folder)}
        self.environment.setdefault("RLVR_CACHE", str(Path.home() / ".cache" / "rlvr"))
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
            self.environment.pop(name, None)

    def rlvr(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RLVR, *words], env=self.environment, capture_output=True, text=True, timeout=400, check=False
        )

    @property
    def head(self) -> local_head.Head:
        head = local_head.find(self.folder / "state" / "head")
        assert head is not None
        return head

    @property
    def jobs(self) -> RayJobs:
        return RayJobs(local_head.endpoint(self.folder / "state" / "head", self.head))

    @property
    def token_file(self) -> Path:
        return self.folder / "state" / "head" / "auth_token"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Its head is started by the first test's job, kept by another until all tests have ended, and ends by itself."""
    with recording_proxy() as proxy:
        place = Place(tmp_path_factory.mktemp("local"), proxy)
        yield place
        head = place.head
        # Ray looks for a cloud around it, and where its makers count users.
        assert [line for line in proxy.seen if re.search(r"127\.0\.0\.1|localhost|Bearer", line)] == []
    place.jobs.stop(KEEPER)
    family = family_of(head.pid)
    assert len(family) > 5
    (server,) = (words for words in commands_of(family) if "ray.util.client.server" in words)
    (agent,) = (word for word in server if word.startswith("--runtime-env-agent-address="))
    assert not agent.endswith(":0")  # it would wait for the node to register, and end a head that is slow to start
    assert not open_to_others(family)
    until(lambda: local_head.find(place.folder / "state" / "head") is None, timeout_s=LINGER_S + 60)
    assert not psutil.wait_procs(family, timeout=30)[1]


KEEPER = "keeper"
"""A job that the head is not idle beside: between the tests' own there may be many seconds on a busy machine."""
RECIPE = """
recipe: mine
model: {name: tiny}
data: {kind: copy, num_shots: 0}
rollout: {max_completion_length: 16, max_model_len: 128, kv_cache_gib: 0.25}
reward: {settings_file: FOLDER/service.yaml, rewards: [{name: mine}, {name: gsm8k_correctness}]}
job: {include: [lengths.py]}
"""
MY_REWARD = """
import time

import lengths

def reward(completion, reference, params):
    time.sleep(PAUSE_S)
    return lengths.reciprocal(completion)
"""
LENGTHS = """
def reciprocal(text):
    return 1 / (1 + len(text))
"""


def own_recipe(folder: Path, pause_s: float = 0.0) -> Path:
    """A recipe with a reward of one's own, sent along by itself, and what that imports, which is named.
    They are modules beside it and nowhere else. A run whose reward pauses leaves the processor to who watches it."""
    folder.mkdir()
    (folder / "lengths.py").write_text(LENGTHS)
    (folder / "my_rewards.py").write_text(MY_REWARD.replace("PAUSE_S", str(pause_s)))
    (folder / "service.yaml").write_text("custom_rewards: [{name: mine, target: 'my_rewards:reward'}]")
    (folder / "mine.yaml").write_text(RECIPE.replace("FOLDER", str(folder)))
    return folder / "mine.yaml"


def test_a_job_that_succeeds_with_a_module_of_ones_own(place: Place) -> None:
    run, recipe = place.folder / "run", own_recipe(place.folder / "recipes")
    words = (str(recipe), *SMALL, "max_steps=1", f"run_dir={run}", "job.name=good", f"local.linger_s={LINGER_S}")
    following = subprocess.Popen(
        [*RLVR, "submit", *words, "--to", "local", "--follow"],
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: local_head.find(place.folder / "state" / "head") or following.poll() is not None, START_S, poll_s=0.2)
    place.jobs.submit(name=KEEPER, command="sleep infinity", runtime_env={})
    output, error = following.communicate(timeout=400)
    assert following.returncode == 0, output + error
    assert "step 1/1" in output
    assert (run / "report.html").is_file()
    assert "warning" not in output
    assert "good succeeded" in error
    assert f"adapter: {run}/adapter\n" in error
    evaluate = f"rlvr eval --model tiny --adapter {run}/adapter --data {recipe} data.num_eval=8 data.num_train=16"
    assert f"to measure it here: {evaluate}\n" in error
    assert json.loads(place.rlvr("jobs", "status", "good", "--json").stdout)["evaluate"] == evaluate
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    table = pyarrow.parquet.read_table(run / "completions" / "step-000001.parquet").to_pydict()
    assert table["reward_mine"] == [1 / (1 + len(text)) for text in table["completion"]]
    assert (place.token_file.stat().st_mode & 0o777, place.token_file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert place.token_file.read_text() not in output + error
    (row,) = json.loads(place.rlvr("jobs", "list", "--json").stdout)
    assert (row["job"], row["state"]) == ("good", "succeeded")
    assert "step 1/1" in place.rlvr("jobs", "logs", "good").stdout
    taken = place.rlvr("submit", *words, "--to", "local")
    assert (taken.returncode, "submitted before" in taken.stderr) == (2, True)


def test_a_job_that_fails_says_why(place: Place) -> None:
    broken = place.folder / "broken.jsonl"
    broken.write_text("{")
    files = (f"data.train_file={broken}", f"data.eval_file={RLVR[0]}", "model.name=tiny")
    done = place.rlvr("submit", "gsm8k", *files, "job.name=bad", "--to", "local", "--follow")
    assert done.returncode == 1
    assert str(broken) in done.stdout
    assert "bad failed" in done.stderr


def test_a_stopped_job_saves_its_state(place: Place) -> None:
    run, recipe = place.folder / "stopped", own_recipe(place.folder / "paced", pause_s=0.5)
    words = (str(recipe), *SMALL, "max_steps=1000", f"run_dir={run}", "job.name=stopped", f"local.linger_s={LINGER_S}")
    done = place.rlvr("submit", *words, "--to", "local", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job"] == "stopped"
    metrics = run / "metrics.jsonl"
    until(lambda: metrics.is_file() and b"\n" in metrics.read_bytes(), START_S, poll_s=0.2)
    following = subprocess.Popen(
        [*RLVR, "jobs", "logs", "-f", "stopped"], env=place.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert following.stdout is not None
    following.stdout.readline()
    following.send_signal(signal.SIGINT)  # leaves the job alone
    _, error = following.communicate(timeout=60)
    assert (following.returncode, b"the job goes on" in error) == (130, True)
    assert "is running" in place.rlvr("jobs", "status", "stopped").stdout
    seen = place.rlvr("watch", place.head.address).stdout
    assert re.search(r"^stopped · running · .*\n+step \d+ of 1000 · reward [\d.]+ · [\d,]+ tok/s", seen), seen
    assert re.search(r"^run folder +/.*/stopped$", seen, re.MULTILINE), seen
    assert re.search(r"^RolloutWorker 0 · v\d+ · [\d,]+ tok/s · \d+ running, \d+ waiting$", seen, re.MULTILINE), seen
    assert re.search(r"step \d+/1000", seen), seen
    assert "beside it: keeper" in seen
    assert place.rlvr("jobs", "stop", "stopped").returncode == 0
    assert place.rlvr("jobs", "logs", "-f", "stopped").returncode == 130
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped"
    assert list((run / "checkpoints").iterdir())
    assert "already" in place.rlvr("jobs", "stop", "stopped").stdout


def test_the_head_is_watched_from_elsewhere(place: Place, tmp_path: Path) -> None:
    place.environment["RLVR_STATE"] = str(tmp_path)  # of a machine that has not started it
    place.environment["COLUMNS"] = "500"  # lines of the log are cut at the terminal's width
    try:
        address = place.head.address
        assert place.rlvr("watch", address).stderr.count("a call without a token") == 1
        seen = place.rlvr("watch", address, f"ray.token_file={place.token_file}", "--job", "good")
        assert seen.stdout.startswith("good · succeeded · ")
        assert f"info: the run's page is {place.folder}" in seen.stdout  # the end of its log
        none = place.rlvr("watch", address, f"ray.token_file={place.token_file}", "--job", "god")
        assert (none.returncode, "did you mean 'good'?" in none.stderr) == (1, True)
    finally:
        place.environment["RLVR_STATE"] = str(place.folder / "state")
        del place.environment["COLUMNS"]


def ray(place: Place, **settings: object) -> RayBackend:
    return RayBackend(SubmitConfig.model_validate({"ray": {"address": place.head.address, **settings}}))


@pytest.mark.parametrize(
    ("token", "what"), [(None, "refused a call without a token"), ("0" * 64, "refused the token it was given")]
)
def test_the_head_takes_no_strangers(
    place: Place, token: str | None, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if token is not None:
        (tmp_path / "token").write_text(token)
    backend = ray(place, token_file=None if token is None else tmp_path / "token")
    with pytest.raises(SubmitError, match=what):
        backend.status({"address": place.head.address, "job_id": "good"})


def test_the_same_head_as_a_cluster(place: Place) -> None:
    backend = ray(place, token_file=place.token_file)
    reference = {"address": place.head.address, "job_id": "good"}
    assert backend.status(reference).state is JobState.SUCCEEDED
    assert backend.status({**reference, "job_id": "stopped"}).state is JobState.STOPPED
    assert "step 1/1" in "".join(backend.logs(reference, follow=True))
    with pytest.raises(SubmitError, match="knows no job 'nosuch'"):
        backend.status({**reference, "job_id": "nosuch"})
    settings = load_settings("tiny", ["device=cuda", "job.name=gpu"])
    said: list[str] = []
    with packed_code() as code:
        job = JobSpec(name="gpu", run=settings.run, code=code)
        with pytest.raises(SubmitError, match=r"has 0 GPUs on 1 nodes: device=cuda"):
            backend.submit(job, said.append)
    assert said[0].startswith(f"{place.head.address} runs Ray 2.")


def test_a_version_that_is_not_ours_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from packaging.requirements import Requirement

    from orchestration.submit.ray import jobs as ray_jobs

    monkeypatch.setattr(ray_jobs, "_supported_ray", lambda: Requirement("ray>=99"))
    jobs = place.jobs
    with pytest.raises(SubmitError, match=r"runs Ray 2\.\d+\.\d+, and this needs ray>=99"):
        jobs.check_version()
