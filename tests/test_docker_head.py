"""The compose file's Ray head, started for real by its own command, but for ports and folders that are the test's."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from tests.dockerfiles import ROOT
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

GAUGE = """
import ray, time
from orchestration.cluster.gauges import RayGauges
ray.init(address="auto", logging_level="ERROR")
gauges = RayGauges("rollout-0")
while True:
    gauges({"rollout_tokens_per_s": 7.0})
    time.sleep(0.5)
"""


@dataclass(frozen=True)
class Head:
    folder: Path
    environment: dict[str, str]
    dashboard_port: int
    agent_port: int
    process: subprocess.Popen[bytes]
    grace_s: float


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    service = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["head"]
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # Ray's sockets allow no long path
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "token").write_text(secrets.token_hex(32))
        gcs, dashboard, agent, environments = free_ports(4)
        environment = {
            **os.environ,
            **service["environment"],
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_ADDRESS": f"127.0.0.1:{gcs}",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        others = ("--dashboard-host", "--metrics-export-port")
        kept = [word for word in service["command"][1:] if not word.startswith(others)]
        words = [*kept, "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
        words += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        words += ["--num-cpus=1", "--object-store-memory=80000000", f"--runtime-env-agent-port={environments}"]
        log = stack.enter_context((folder / "log").open("w"))
        script = ROOT / "docker" / Path(service["command"][0]).name
        process = subprocess.Popen([script, *words], env=environment, stdout=log, stderr=log, start_new_session=True)
        stack.callback(end, process)
        yield Head(folder, environment, dashboard, agent, process, float(service["stop_grace_period"].rstrip("s")))


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a head and what it started, and nobody else's."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    for child in started:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.kill()
    process.wait(20)


def eventually(check: Callable[[], bool], *, head: Head, limit_s: float = 60) -> None:
    until(check, limit_s, poll_s=0.3, told=(head.folder / "log").read_text)


def read(url: str) -> tuple[int, str]:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


def is_healthy(head: Head) -> bool:
    words = [sys.executable, ROOT / "docker" / "ray_healthcheck.py", str(head.agent_port)]
    return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode == 0


def test_it_gets_healthy_and_shows_nothing_without_the_token(head: Head) -> None:
    eventually(lambda: is_healthy(head), head=head)
    jobs = f"http://127.0.0.1:{head.dashboard_port}/api/jobs/"
    eventually(lambda: read(jobs)[0] == 401, head=head)


def test_prometheus_finds_our_gauges_without_a_token(head: Head) -> None:
    eventually(lambda: is_healthy(head), head=head)
    discovery = head.folder / "prom_metrics_service_discovery.json"
    eventually(discovery.exists, head=head)
    with subprocess.Popen([sys.executable, "-c", GAUGE], env=head.environment, cwd=ROOT) as driver:
        try:

            def is_exported() -> bool:
                targets = [target for group in json.loads(discovery.read_text()) for target in group["targets"]]
                texts = [read(f"http://{target}/metrics")[1] for target in targets]
                return any("ray_rlvr_rollout_tokens_per_s{" in text for text in texts)

            eventually(is_exported, head=head)
        finally:
            driver.kill()


def test_grafana_finds_rays_dashboards(head: Head) -> None:
    provider = yaml.safe_load((ROOT / "docker/grafana/provisioning/dashboards/dashboards.yaml").read_text())[
        "providers"
    ][1]
    folder = head.folder / Path(provider["options"]["path"]).relative_to("/tmp/ray")
    eventually(lambda: any(folder.glob("*.json")), head=head)


def test_asked_to_stop_it_ends_in_order_and_leaves_nothing(head: Head) -> None:
    """The last test: by the signal that the image's `tini -g` hands on to the group."""
    eventually(lambda: is_healthy(head), head=head)
    started = psutil.Process(head.process.pid).children(recursive=True)
    os.killpg(head.process.pid, signal.SIGTERM)
    assert head.process.wait(head.grace_s / 2) == 0  # Ray's own wait for requests to Ray Serve would take longer
    assert psutil.wait_procs(started, timeout=10)[1] == []
