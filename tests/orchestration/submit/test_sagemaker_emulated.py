"""Training jobs as SageMaker would run them, on hosts in namespaces: the request is the backend's, the hosts run what
it says, and Ray is real. One job trains the tiny model; in those about the hosts alone a stub stands in for the run.

Not covered: what `tests.orchestration.submit.sagemaker_emulator` does not emulate, GPUs first of all.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestration.models.resolve import resolve_model
from orchestration.report.plain import EVALUATION_METRICS, LINE_METRICS
from orchestration.settings.config import load_settings
from orchestration.storage.cache import cache_root
from orchestration.submit.common.job import JobSpec
from orchestration.submit.common.package import packed_code
from orchestration.submit.sagemaker.container import container_inputs
from orchestration.submit.sagemaker.request import form
from tests.orchestration.submit import stub_run
from tests.orchestration.submit.sagemaker_emulator import EmulatedJob, Host, namespaces_missing

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TOKEN = "5ec2e7" * 10
SMALL = ("prompts_per_step=2", "rollout.num_generations=2", "eval_at_ends=false", "data.num_eval=2")
ONE_HOST = ("sagemaker.instance_type=ml.m5.large",)
TWO_HOSTS = (*ONE_HOST, "sagemaker.instance_count=2")
MODEL_FILES = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.yaml", "summary.json"]
"""Of the stub; a run adds a card and the tokenizer."""
CARD_FILES = ["README.md", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
START_S = 300.0
"""Limit on what starts or ends Ray, on a busy machine."""
TRAIN_S = 400.0
"""Limit on a job that trains, on a slow machine without compiled kernels."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a submission would have sent."""

    request: dict[str, Any]
    channels: Mapping[str, Path]

    def with_stub(self) -> Prepared:
        """With `stub_run` as the run."""
        shutil.copyfile(stub_run.__file__, self.channels["code"] / "orchestration/cli.py")
        return self

    def with_constant(self, module: str, old: str, new: str) -> Prepared:
        """With another value of a constant of ours, so that a test waits for seconds where a job waits for longer."""
        path = self.channels["code"] / module
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        return self


def caches() -> dict[str, Path]:
    """What hosts share with this machine, where it spares them work: models and compiled kernels, by variable."""
    inductor = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    defaults = {
        "RLVR_CACHE": cache_root(),
        "TORCHINDUCTOR_CACHE_DIR": inductor,
        "TORCH_EXTENSIONS_DIR": Path.home() / ".cache/torch_extensions",
        "VLLM_CACHE_ROOT": Path.home() / ".cache/vllm",
    }
    return {name: Path(os.environ.get(name) or folder).resolve() for name, folder in defaults.items()}


class Workplace:
    """Makes jobs, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._compiled = folder, folder.parent / "compiled"
        self._compiled.mkdir(exist_ok=True)

    def prepare(self, *overrides: str) -> Prepared:
        """The request and the channels' content, as the backend forms them."""
        settings = load_settings(
            "tiny",
            [
                "sagemaker.role=arn:aws:iam::111122223333:role/training",
                "sagemaker.bucket=jobs-of-tests",
                "sagemaker.image=111122223333.dkr.ecr.eu-west-1.amazonaws.com/rlvr:1",
                *SMALL,
                *overrides,
            ],
        )
        place = Path(tempfile.mkdtemp(prefix="channels-", dir=self._folder))
        with packed_code() as code:
            environment = settings.submit.job.environment
            job = JobSpec(name="rlvr-tiny-20261121-172233", run=settings.run, code=code, environment=environment)
            inputs = container_inputs(settings.submit.sagemaker, job)
            request = form(settings.submit.sagemaker, job, inputs)
            uploads = [file for upload in inputs.uploads for file in upload.files()]
            for content, uri in [*uploads, (TOKEN.encode(), inputs.layout.token)]:
                target = place / uri.partition(f"/input-{job.submission}/")[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
                os.utime(target, (0, 0))  # what one host has compiled of it serves all, of every job
        names = [channel["ChannelName"] for channel in request["InputDataConfig"]]
        return Prepared(request=request, channels={name: place / name for name in names})

    def job(self, prepared: Prepared, name: str = "job", *, checkpoints: Path | None = None) -> EmulatedJob:
        return EmulatedJob(
            request=prepared.request,
            channels=prepared.channels,
            folder=self._folder / name,
            checkpoints=checkpoints,
            environment={
                **{variable: str(folder) for variable, folder in caches().items()},
                "PYTHONPYCACHEPREFIX": str(self._compiled),
                "RLVR_OBJECT_STORE_BYTES": str(150 * 2**20),  # of each host, and all share this machine's memory
                "HF_HUB_OFFLINE": "1",
                # Nobody listens there: what went through a proxy would not arrive.
                **dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"),
                "VLLM_NO_USAGE_STATS": "1",
            },
            keep=(*caches().values(), self._compiled),
        )


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    if (reason := namespaces_missing()) is not None:
        if os.environ.get("RLVR_EXPECT_NAMESPACES") == "1":
            pytest.fail(f"RLVR_EXPECT_NAMESPACES=1, but {reason}")
        pytest.skip(reason)
    resolve_model("tiny", None)
    for folder in caches().values():
        folder.mkdir(parents=True, exist_ok=True)
    return Workplace(tmp_path)


def ended(job: EmulatedJob, timeout_s: float) -> dict[str, int]:
    """Exit statuses; with the logs when hosts are still there. No log has the token."""
    try:
        return job.wait(timeout_s)
    finally:
        for host in job.hosts.values():
            assert TOKEN not in host.log
            print(f"--- {host.name}, failure: {host.failure}\n{host.log[-6000:]}")  # pytest shows it of what failed


def ran_there(host: Host) -> set[str]:
    """Names of our actors that this host's Ray has had."""
    logs = (host.folder / "tmp/ray").glob("session_*/logs/worker-*.out")
    return {name for log in logs for name in re.findall(r":actor_name:(\w+-\d+)", log.read_text(errors="replace"))}


def test_each_group_of_hosts_has_its_role_in_a_run_that_trains(workplace: Workplace) -> None:
    """Long, as it alone trains: engine, learner and service on hosts of their own, adapters between them."""
    groups = [{"role": role, "instance_type": "ml.m5.large"} for role in ("learner", "rollout", "reward")]
    prepared = workplace.prepare(f"sagemaker.instance_groups={json.dumps(groups)}", "max_steps=2", "eval_at_ends=true")
    prepared.request["ResourceConfig"]["InstanceGroups"].reverse()  # nobody says that the head's group comes first
    with workplace.job(prepared) as job:
        job.start()
        assert ended(job, TRAIN_S) == {"algo-1": 0, "algo-2": 0, "algo-3": 0}
        reward, rollout, learner = job.hosts.values()
        assert f"the reward service is on node {reward.ip}" in learner.log
        metrics = job.metrics()
    assert [ran_there(host) for host in (learner, rollout, reward)] == [{"learner-0"}, {"rollout-0"}, {"reward-0"}]
    assert learner.files("model") == sorted([*MODEL_FILES, *(f"adapter/{name}" for name in CARD_FILES)])
    summary = json.loads((learner.ml / "model/summary.json").read_text())
    assert summary["status"] == "finished"
    place = "s3://jobs-of-tests/rlvr/jobs/rlvr-tiny-20261121-172233/checkpoints/run/adapter"
    assert summary["adapter"] == place
    assert f"algo-3: adapter: {place}" in learner.log
    assert [host.files("model") + host.files("checkpoints") for host in (rollout, reward)] == [[], []]
    assert all(host.failure is None for host in job.hosts.values())
    assert {name: len(values) for name, values in metrics.items()} == dict.fromkeys(
        [*LINE_METRICS, *EVALUATION_METRICS], 2
    )


def test_a_job_that_was_stopped_goes_on_where_its_checkpoints_are(workplace: Workplace) -> None:
    prepared = workplace.prepare(*TWO_HOSTS, "max_steps=20", "job.environment={STUB_WAITS: algo-2}").with_stub()
    with workplace.job(prepared, "first") as job:
        job.start()
        job.wait_for_line("algo-1", r"step 1/20 ", START_S)
        job.hosts["algo-2"].send(signal.SIGTERM)  # the run needs it until its state is saved
        job.hosts["algo-1"].send(signal.SIGTERM)
        job.hosts["algo-1"].send(signal.SIGTERM)  # a second is no more than the first
        assert ended(job, START_S) == {"algo-1": 130, "algo-2": 130}
        head, worker = job.hosts.values()
    assert "a job with the same checkpoint folder goes on" in str(head.failure)
    assert "algo-1" in str(worker.failure)
    assert json.loads((head.ml / "checkpoints/run/summary.json").read_text())["status"] == "stopped"
    assert worker.files("checkpoints") == worker.files("model") == []

    # On one host now, a head without workers.
    prepared = workplace.prepare(*ONE_HOST, "max_steps=20").with_stub()
    with workplace.job(prepared, "second", checkpoints=head.ml / "checkpoints") as job:
        job.start()
        assert ended(job, START_S) == {"algo-1": 0}
        head = job.hosts["algo-1"]
    assert "going on after step 1" in head.log
    assert "step 20/20" in head.log
    steps = [json.loads(line)["step"] for line in (head.ml / "checkpoints/run/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))
    assert head.files("model") == MODEL_FILES
    assert head.failure is None

    # Interrupted again, after the run's end: it is not made a second time.
    prepared = workplace.prepare(*TWO_HOSTS, "max_steps=20").with_stub()
    with workplace.job(prepared, "third", checkpoints=head.ml / "checkpoints") as job:
        job.start()
        assert ended(job, START_S) == {"algo-1": 0, "algo-2": 0}
        head, worker = job.hosts.values()
    assert "nothing to do" in head.log
    assert head.files("model") == MODEL_FILES
    assert worker.files("model") == []
    assert head.failure is worker.failure is None


def test_a_run_that_fails_is_told_in_its_own_words(workplace: Workplace) -> None:
    """By the head; a worker goes by the head's job, as in the next test."""
    with workplace.job(workplace.prepare(*ONE_HOST, "model.name=no-such-model")) as job:
        job.start()
        assert ended(job, START_S) == {"algo-1": 1}
        head = job.hosts["algo-1"]
        (log,) = (head.folder / "tmp/ray").glob("session_2*/logs/ray_client_server.err")
        assert f"agent_address='http://{head.ip}:8266'" in log.read_text()  # it need not wait for the node to register
    assert head.failure is not None
    assert "no-such-model" in head.failure
    assert head.files("model") == []


def test_hosts_that_do_not_join_are_named_in_order(workplace: Workplace) -> None:
    hosts = (*ONE_HOST, "sagemaker.instance_count=11", "sagemaker.join_timeout_s=45")
    with workplace.job(workplace.prepare(*hosts).with_stub()) as job:
        job.start("algo-1", "algo-10")  # as text, algo-10 would be the second host, and algo-11 the third
        assert ended(job, START_S) == {"algo-1": 1, "algo-10": 1}
        late = ", ".join(f"algo-{number}" for number in (2, 3, 4, 5, 6, 7, 8, 9, 11))
        failures = [job.hosts[name].failure for name in ("algo-1", "algo-10")]
    reason = f"{late} did not join Ray within 45 s"
    assert failures == [reason, f"the head, algo-1, ended: {reason}"]


def test_workers_leave_a_head_that_is_gone(workplace: Workplace) -> None:
    prepared = workplace.prepare(*TWO_HOSTS, "job.environment={STUB_WAITS: algo-2}").with_stub()
    shorter = ("orchestration/submit/sagemaker/host/facts.py", "HEAD_GONE_S = 120.0", "HEAD_GONE_S = 8.0")
    with workplace.job(prepared.with_constant(*shorter)) as job:
        job.start()
        job.wait_for_line("algo-1", "2 of 2 hosts have joined", START_S)
        job.hosts["algo-1"].send(signal.SIGKILL)
        assert ended(job, START_S)["algo-2"] == 1
        assert job.hosts["algo-2"].failure == "the head, algo-1, is gone"
