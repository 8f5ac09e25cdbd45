"""What the hosts of a training job decide, without a host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from orchestration.errors import SubmitError
from orchestration.run.ledger.folder import read_status
from orchestration.settings.config import load_settings
from orchestration.submit.common.job import JobSpec, JobState, JobStatus
from orchestration.submit.common.package import CodePackage
from orchestration.submit.ray import process as ray_process
from orchestration.submit.ray.process import RayProcess
from orchestration.submit.sagemaker.container import container_inputs
from orchestration.submit.sagemaker.driver import driver
from orchestration.submit.sagemaker.host import head_ray as sagemaker_host_ray
from orchestration.submit.sagemaker.host import run as sagemaker_host
from orchestration.submit.sagemaker.host.environment import cuda_compatibility, fetch_secrets
from orchestration.submit.sagemaker.host.facts import (
    HEAD,
    HEAD_GONE_S,
    MAX_FAILURE_CHARS,
    STOP_JOB_S,
    STOPPED_WORKER_S,
    HostError,
    HostFacts,
    by_number,
    failure_text,
    host_facts,
    lacking_gpus,
    missing,
    object_store_bytes,
    ray_environment,
    ray_start,
    run_ending,
    run_failure,
    worker_ending,
)
from orchestration.submit.sagemaker.host.head_ray import JobLog

SETTINGS = {"join_timeout_s": 600.0, "head_group": None, "gpus": {}, "adapter": "s3://b/adapter"}


def resources(current: str, **groups: list[str]) -> dict[str, Any]:
    """A `resourceconfig.json`; SageMaker's lists are in the order of the text."""
    return {
        "current_host": current,
        "hosts": sorted(host for hosts in groups.values() for host in hosts),
        "instance_groups": [
            {"instance_group_name": name, "instance_type": "ml.m5.large", "hosts": sorted(hosts)}
            for name, hosts in groups.items()
        ],
        "network_interface_name": "eth0",
    }


def facts(name: str = "algo-2", **settings: Any) -> HostFacts:
    return host_facts(resources(name, all=["algo-1", "algo-2"]), {**SETTINGS, **settings}, job_name="job")


def groups(*, learner: int) -> str:
    rooms = [("learner", learner), ("rollout", 1)]
    return "sagemaker.instance_groups=" + json.dumps(
        [{"role": role, "instance_type": "ml.p4d.24xlarge", "instance_count": count} for role, count in rooms]
    )


# Who is who


def test_hosts_are_in_the_order_of_their_numbers() -> None:
    names = [f"algo-{number}" for number in range(1, 12)]
    assert by_number(sorted(names)) == tuple(names)
    known = host_facts(resources("algo-10", homogeneousCluster=names), SETTINGS, job_name="job")
    assert (known.head, known.is_head, known.workers) == ("algo-1", False, tuple(names[1:]))


def test_the_only_group_of_a_job_gives_no_role() -> None:
    known = host_facts(resources("algo-1", homogeneousCluster=["algo-1"]), SETTINGS, job_name="job")
    assert (known.role, known.is_head, known.workers) == (None, True, ())


def test_the_head_is_the_first_host_of_its_group() -> None:
    groups = {"rollout": ["algo-1", "algo-2"], "learner": ["algo-10", "algo-9"], "reward": ["algo-3"]}
    settings = {**SETTINGS, "head_group": "learner"}
    known = [
        host_facts(resources(host, **groups), settings, job_name="job") for host in ("algo-9", "algo-10", "algo-3")
    ]
    assert {host.head for host in known} == {"algo-9"}
    assert [host.role for host in known] == ["learner", "learner", "reward"]


def test_a_head_group_that_is_not_there_is_refused() -> None:
    with pytest.raises(HostError, match=r"head_group='learner' is no instance group .* \['all'\]"):
        facts(head_group="learner")


P4D = "sagemaker.instance_type=ml.p4d.24xlarge"


@pytest.mark.parametrize(
    ("overrides", "held"),
    [
        ((P4D,), False),  # there is one host
        ((P4D, "sagemaker.instance_count=2"), True),
        ((P4D, "sagemaker.instance_count=2", "rollout.num_workers=4", "learner.num_ranks=8"), True),
        ((P4D, "sagemaker.instance_count=2", "rollout.num_workers=4", "learner.num_ranks=12"), False),
        ((P4D, "sagemaker.instance_count=2", "placement=colocated"), False),
        (("sagemaker.instance_type=ml.m5.large", "sagemaker.instance_count=2"), True),
        ((groups(learner=1),), False),
        ((groups(learner=2),), True),
        ((groups(learner=2), "learner.num_ranks=16"), False),
    ],
)
def test_a_learner_that_fits_is_held_on_the_head(overrides: tuple[str, ...], held: bool) -> None:
    settings = load_settings("tiny", [*overrides, "sagemaker.bucket=b"])
    code = CodePackage(folder=Path(), digest="", num_files=0, num_bytes=0)
    job = JobSpec(name="n", run=settings.run, code=code)
    inputs = container_inputs(settings.submit.sagemaker, job)
    assert (inputs.run.learner_nodes == HEAD) is held


# How Ray is started


def test_the_head_is_reachable_and_bears_its_marks() -> None:
    command = ray_start(facts("algo-1"), node_ip="10.0.0.1", object_store_bytes=2**30)
    assert command[0] == sys.executable
    assert {"--head", "--block", "--port=6379", "--dashboard-host=0.0.0.0", "--dashboard-port=8265"} <= set(command)
    assert option(command, "--runtime-env-agent-port") == "8266"  # else a head that is slow to start is ended by Ray
    assert {"--node-ip-address=10.0.0.1", "--object-store-memory=1073741824", "--node-name=algo-1"} <= set(command)
    assert json.loads(option(command, "--resources")) == {"algo-1": 1, HEAD: 1}
    assert not any(word.startswith(("--address", "--num-cpus", "--num-gpus")) for word in command)


def test_a_worker_joins_with_the_resource_of_its_role() -> None:
    groups = {"learner": ["algo-1"], "rollout": ["algo-2"]}
    known = host_facts(resources("algo-2", **groups), {**SETTINGS, "head_group": "learner"}, job_name="job")
    command = ray_start(known, node_ip="10.0.0.2", object_store_bytes=2**30)
    assert option(command, "--address") == "algo-1:6379"
    assert json.loads(option(command, "--resources")) == {"algo-2": 1, "rollout": 1}
    assert "--head" not in command


def option(command: list[str], name: str) -> str:
    return next(word.partition("=")[2] for word in command if word.startswith(f"{name}="))


def test_authentication_is_explicit_and_the_token_a_file() -> None:
    environment = ray_environment(code="/code", token_file="/auth/auth_token")
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == "/auth/auth_token"
    assert "RAY_AUTH_TOKEN" not in environment
    assert environment["PYTHONPATH"] == "/code"
    assert ray_environment(code="/code", token_file="", python_path="/image")["PYTHONPATH"] == "/code:/image"


def test_a_stop_fits_into_the_two_minutes_before_the_kill() -> None:
    assert float(ray_environment(code="", token_file="")["RAY_JOB_STOP_WAIT_TIME_S"]) == STOP_JOB_S
    head = STOP_JOB_S + 5 + sagemaker_host._TELL_WORKERS_S + ray_process._END_S + ray_process._END_CHILDREN_S
    assert head < 120
    assert STOPPED_WORKER_S < 120


@pytest.mark.parametrize(
    ("memory_gib", "shared_gib", "limit_gib", "expected_gib"),
    [
        (16, 8, None, 1.6),  # a tenth of the memory
        (1152, 500, None, 16),  # our own bound
        (1152, 10, None, 8),  # four fifths of /dev/shm
        (2, 1, None, 0.25),  # no less than Ray is any good with
        (1152, 0.25, None, 0.2),  # and never more than fits
        (16, 8, 0.125, 0.125),  # as was asked for
    ],
)
def test_the_object_store_is_bounded(
    memory_gib: float, shared_gib: float, limit_gib: float | None, expected_gib: float
) -> None:
    size = object_store_bytes(
        memory=int(memory_gib * 2**30),
        shared_memory=int(shared_gib * 2**30),
        limit=None if limit_gib is None else int(limit_gib * 2**30),
    )
    assert size / 2**30 == pytest.approx(expected_gib)


def test_a_host_whose_shared_memory_is_too_small_is_refused() -> None:
    with pytest.raises(HostError, match=r"/dev/shm has 64 MiB free, and Ray's object store needs 94"):
        object_store_bytes(memory=2**40, shared_memory=64 * 2**20)


def test_gpus_that_are_paid_for_and_not_seen_are_named() -> None:
    groups = {"learner": ["algo-1"], "rollout": ["algo-2", "algo-3"], "reward": ["algo-4"]}
    settings = {**SETTINGS, "head_group": "learner", "gpus": {"learner": 8, "rollout": 4}}
    known = host_facts(resources("algo-1", **groups), settings, job_name="job")
    nodes = [{"algo-1": 1, "GPU": 8.0}, {"algo-2": 1, "GPU": 3.0}, {"algo-3": 1}, {"algo-4": 1}]
    assert lacking_gpus(known, nodes) == "algo-2 has 3 of 4 GPUs, algo-3 has 0 of 4 GPUs"
    one_type = host_facts(
        resources("algo-1", homogeneousCluster=["algo-1"]), {**SETTINGS, "gpus": {"": 8}}, job_name="j"
    )
    assert lacking_gpus(one_type, [{"algo-1": 1.0, "GPU": 8.0}]) == ""
    assert lacking_gpus(one_type, [{"algo-1": 1.0}]) == "algo-1 has 0 of 8 GPUs"
    assert lacking_gpus(facts(), [{"algo-1": 1.0}]) == ""


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (None, {}),
        ("590.44.01", {}),  # the libraries would be in its way
        ("580.65.06", {}),
        ("570.172.08", {"LD_LIBRARY_PATH": "{compat}:/opt/efa"}),
        ("535.54.03", {"LD_LIBRARY_PATH": "{compat}:/opt/efa"}),
        ("470.256.02", None),
    ],
)
def test_an_old_driver_gets_the_compatibility_libraries(
    driver: str | None, expected: dict[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/efa")
    (tmp_path / "compat").mkdir()
    if driver is not None:
        (tmp_path / "version").write_text(f"{driver}\n")
    if expected is None:
        with pytest.raises(HostError, match=r"driver is 470\.256\.02, and CUDA 13 needs 580"):
            cuda_compatibility(tmp_path / "version", tmp_path / "compat")
        return
    found = cuda_compatibility(tmp_path / "version", tmp_path / "compat")
    assert found == {name: value.format(compat=tmp_path / "compat") for name, value in expected.items()}


def test_secrets_are_fetched_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    with mock_aws():
        manager, parameters = (boto3.client(name, region_name="eu-west-1") for name in ("secretsmanager", "ssm"))
        manager.create_secret(Name="team/hub", SecretString="hf_plain")
        arn = manager.create_secret(Name="team/both", SecretString='{"WANDB_API_KEY": "w", "OTHER": "o"}')["ARN"]
        parameters.put_parameter(Name="/team/judge", Value="j", Type="SecureString")
        secrets = {"HF_TOKEN": "secretsmanager:team/hub", "WANDB_API_KEY": f"secretsmanager:{arn}"}
        found = fetch_secrets({**secrets, "JUDGE_KEY": "ssm:/team/judge"}, {})
        assert found == {"HF_TOKEN": "hf_plain", "WANDB_API_KEY": "w", "JUDGE_KEY": "j"}
        with pytest.raises(HostError, match="holds no text for HF_TOKEN"):
            fetch_secrets({"HF_TOKEN": "secretsmanager:team/both"}, {})
        with pytest.raises(SubmitError, match="fetching HF_TOKEN from ssm:/nowhere: AWS refused"):
            fetch_secrets({"HF_TOKEN": "ssm:/nowhere"}, {})


def test_a_host_has_joined_when_a_node_bears_its_name() -> None:
    assert missing(facts(), [{"CPU": 2.0, "algo-1": 1.0}, {"CPU": 2.0}]) == ("algo-2",)
    assert missing(facts(), [{"algo-2": 1.0}, {"algo-1": 1.0}]) == ()


# When a worker leaves


@pytest.mark.parametrize(
    ("answered", "silent_s", "more", "expected"),
    [
        (False, 599, {}, None),
        (False, 601, {}, (1, "the head, algo-1, did not answer algo-2 within 600 s")),
        (False, 5, {"stopping_s": 0}, (130, "algo-2 was stopped before the head was up")),
        (True, 0, {}, None),
        (True, HEAD_GONE_S - 1, {}, None),
        (True, HEAD_GONE_S + 1, {}, (1, "the head, algo-1, is gone")),
        # The run on the head still needs a worker that was told to stop first.
        (True, 0, {"stopping_s": 100}, None),
        (True, 0, {"stopping_s": STOPPED_WORKER_S + 1}, (130, "algo-2 was stopped, and the head, algo-1, was not")),
        # Ray ended here because the head is gone, or by itself: the head's answer tells.
        (True, 3, {"ray_ended": "lost its head"}, None),
        (True, 0, {"ray_ended": "no room"}, (1, "Ray ended on algo-2: no room")),
    ],
)
def test_a_worker_leaves_when_there_is_a_reason(
    answered: bool, silent_s: float, more: dict[str, Any], expected: tuple[int, str] | None
) -> None:
    known = {"ray_ended": None, "stopping_s": -1.0, **more}
    ending = worker_ending(facts(), answered=answered, silent_s=silent_s, **known)
    assert (None if ending is None else (ending.exit_code, ending.reason)) == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (JobState.SUCCEEDED, (0, "")),
        (JobState.STOPPED, (130, "stopped; a job with the same checkpoint folder goes on from here")),
        (JobState.FAILED, (1, "no such model")),
    ],
)
def test_a_host_leaves_as_the_run_ended(state: JobState, expected: tuple[int, str]) -> None:
    ending = run_ending(JobStatus(state=state, message="exit code 1"), ["step 1", "rlvr: no such model"])
    assert (ending.exit_code, ending.reason) == expected


# What is said of a failure


def test_a_failure_is_told_in_the_run_s_own_sentence() -> None:
    lines = ["17:00:00 preparing model x", "rlvr: model folder 'x' is not there", "", "(noise of a library at its end)"]
    message = "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars): a b c"
    assert run_failure(lines, message) == "model folder 'x' is not there"
    assert run_failure(["Traceback (most recent call last):", "KeyError: 'a'", " "], message) == (
        "Job entrypoint command failed with exit code 1; its last line: KeyError: 'a'"
    )
    assert run_failure([], "") == "the run failed; its last line: it said nothing"


def test_a_failure_file_has_what_sagemaker_shows() -> None:
    assert failure_text("one\n  line") == "one line"
    assert len(failure_text("x" * 5000)) == MAX_FAILURE_CHARS
    assert failure_text("x" * MAX_FAILURE_CHARS) == "x" * MAX_FAILURE_CHARS


# Processes and files


def test_a_process_of_ray_leaves_its_last_words_and_no_children(tmp_path: Path) -> None:
    failed = RayProcess(["sh", "-c", "echo no room; exit 3"], {}, tmp_path / "log")
    failed._process.wait(10)
    assert failed.ended() == "no room (exit code 3)"
    failed.stop()

    running = RayProcess(
        ["sh", "-c", "sleep 60 & echo $! > $WHERE; wait"], {"WHERE": str(tmp_path / "pid")}, tmp_path / "log"
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        pass
    assert running.ended() is None
    running.stop()
    running.stop()
    assert running.ended() is not None
    with pytest.raises(ProcessLookupError):
        _wait_for_end(int((tmp_path / "pid").read_text()))


def _wait_for_end(pid: int) -> None:
    """Raises ProcessLookupError when it is gone, or a zombie that nobody here can reap."""
    for _ in range(1000):
        os.kill(pid, 0)
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            raise ProcessLookupError
        threading.Event().wait(0.01)


def test_a_log_is_passed_on_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sagemaker_host_ray, "RAY_FOLDER", str(tmp_path))
    path = tmp_path / "session_latest/logs/job-driver-job.log"
    path.parent.mkdir(parents=True)
    log = JobLog("job")
    log.relay()  # there is none yet
    path.write_bytes("größer=1\nhalf".encode())
    log.relay()
    assert capsys.readouterr().out == "größer=1\n"
    with path.open("ab") as file:
        file.write(b" a line\nand the end")
    log.relay(all_of_it=True)
    assert capsys.readouterr().out == "half a line\nand the end\n"
    assert list(log.tail) == ["größer=1", "half a line", "and the end"]


def test_what_is_put_out_is_the_adapter_the_summary_and_the_configuration(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "checkpoints").mkdir()
    for name in ("adapter/adapter_model.safetensors", "config.yaml", "metrics.jsonl", "checkpoints/state"):
        (run / name).write_text(name)
    assert read_status(run) is None
    for status, finished in (("stopped", False), ("finished", True)):
        (run / "summary.json").write_text(json.dumps({"status": status}))
        assert (read_status(run) == "finished") is finished
    for _ in range(2):  # a second start finds the first one's
        sagemaker_host.put_out(run, tmp_path / "model", adapter="s3://b/adapter")
    kept = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert kept == {"adapter/adapter_model.safetensors", "config.yaml", "summary.json"}
    for folder in (run, tmp_path / "model"):
        summary = json.loads((folder / "summary.json").read_text())
        assert summary == {"status": "finished", "adapter": "s3://b/adapter"}


@pytest.mark.parametrize("broken", ["", "[]", "{}"])
def test_a_summary_that_cannot_be_read_is_of_no_finished_run(tmp_path: Path, broken: str) -> None:
    (tmp_path / "summary.json").write_text(broken)
    assert read_status(tmp_path) is None


def test_the_first_process_passes_sigterm_on_and_gives_the_exit_code_back() -> None:
    """Here as an ordinary process: `_first_process` is what process 1 does after its fork."""
    code = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(Path(driver.__file__).parent)!r})\n"
        "import driver\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, driver._WATCHED)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))\n"
        "    signal.pthread_sigmask(signal.SIG_UNBLOCK, driver._WATCHED)\n"
        "    print('ready', flush=True)\n"
        "    while True: signal.pause()\n"
        "sys.exit(driver._first_process(child))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 7


def test_an_image_without_our_dependencies_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "CODE", str(tmp_path))
    monkeypatch.setattr(driver, "FAILURE", str(tmp_path / "failure"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "orchestration.submit.sagemaker.host.run", None)  # importing it fails
    assert driver.main() == 1
    assert "build it from docker/rollout_learner.Dockerfile" in (tmp_path / "failure").read_text()
