"""The training image, as far as it can be proven without a Docker daemon: its Dockerfile is read and linted, its health
check asks a server, its command is parsed by Ray."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from packaging.version import Version

from orchestration.settings.hyperpod import HyperPodConfig
from tests.dockerfiles import ROOT, Dockerfile, let_through

DOCKERFILE = Dockerfile(ROOT / "docker" / "rollout_learner.Dockerfile")
HEALTH_CHECK = ROOT / "docker" / "ray_healthcheck.py"


def set_up() -> str:
    return " ".join(i.text for i in DOCKERFILE.named("RUN"))


class TestDockerfile:
    def test_hadolint_finds_nothing(self) -> None:
        hadolint = Path(sys.executable).with_name("hadolint")
        done = subprocess.run([hadolint, DOCKERFILE.path], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout

    def test_the_base_is_pinned_and_of_torchs_cuda(self) -> None:
        assert [i.text for i in DOCKERFILE.named("FROM")] == ["${BASE}"]
        base = re.fullmatch(r"nvidia/cuda:(\d+\.\d+)\.\d+-devel-ubuntu24\.04", DOCKERFILE.arguments()["BASE"])
        assert base is not None
        lock = (ROOT / "requirements-train.lock").read_text()
        (cuda,) = re.findall(r"^cuda-toolkit==(\d+\.\d+)", lock, re.MULTILINE)
        assert base[1] == cuda

    def test_what_is_fetched_is_pinned_and_its_signature_looked_at(self) -> None:
        arguments = DOCKERFILE.arguments()
        assert Version(arguments["EFA_VERSION"])
        assert re.fullmatch(r"[0-9A-F]{40}", arguments["EFA_SIGNED_BY"])
        text = set_up()
        assert text.index("--verify") < text.index('grep "VALIDSIG.*${EFA_SIGNED_BY}"') < text.index("efa_installer.sh")
        assert "latest" not in text
        assert re.findall(r"https?://[^;\s]+", text) == ["https://efa-installer.amazonaws.com"]
        assert DOCKERFILE.named("ADD") == []

    def test_a_download_that_fails_fails_the_build(self) -> None:
        (shell,) = DOCKERFILE.named("SHELL")
        assert shell.words == ["/bin/bash", "-e", "-o", "pipefail", "-c"]

    def test_the_lock_is_what_is_installed(self) -> None:
        assert "python -m pip install --no-deps --require-hashes --requirement /opt/requirements-train.lock" in set_up()

    def test_what_is_copied_is_there_and_let_through(self) -> None:
        sources = [source for i in DOCKERFILE.named("COPY") for source in i.words[:-1]]
        assert sources == [
            "requirements-train.lock",
            "docker/ray_healthcheck.py",
            "docker/cuda_compat.sh",
            "docker/ray_head.sh",
        ]  # our code comes with every job
        assert all(let_through(source) for source in sources)

    def test_it_runs_as_a_user_who_may_nothing_unless_sagemaker_asks(self) -> None:
        *_, user = DOCKERFILE.named("USER")
        assert user.text == "${USER_ID}"
        assert int(DOCKERFILE.arguments()["USER_ID"]) == HyperPodConfig().user_id >= 1000
        after = [i.name for i in DOCKERFILE.instructions()[DOCKERFILE.instructions().index(user) :]]
        assert not {"RUN", "COPY", "ADD"} & set(after)
        assert f"useradd --uid {HyperPodConfig().user_id}" in set_up()
        assert "--owner=10001 --group=10001 /var/lib/rlvr /tmp/ray" in set_up()  # volumes there are made as these are

    def test_no_layer_holds_a_secret(self) -> None:
        secret = re.compile(r"key|secret|token|passw|credential", re.IGNORECASE)
        assert [i.text for i in DOCKERFILE.named("ENV") + DOCKERFILE.named("ARG") if secret.search(i.text)] == []

    def test_its_users_find_what_they_need(self) -> None:
        assert {"wget", "gcc", "tini", "${PYTHON}-dev"} <= set(re.findall(r"[\w$\-{}]+", set_up()))
        assert any(i.text.startswith("PATH=/opt/rlvr/bin:$PATH") for i in DOCKERFILE.named("ENV"))

    def test_nobody_but_its_own_container_reaches_a_head_without_a_token(self) -> None:
        (command,) = DOCKERFILE.named("CMD")
        given = parse_head(command.words)
        assert given["dashboard_host"] == "127.0.0.1"
        assert given["runtime_env_agent_port"]  # else a slow start is an end

    def test_signals_reach_it(self) -> None:
        (entry_point,) = DOCKERFILE.named("ENTRYPOINT")
        assert entry_point.words == ["tini", "-g", "--", "/opt/rlvr/cuda_compat.sh"]
        (check,) = DOCKERFILE.named("HEALTHCHECK")
        assert check.text.endswith('CMD ["/opt/rlvr/bin/python", "/opt/rlvr/ray_healthcheck.py"]')


COMPAT = ROOT / "docker" / "cuda_compat.sh"


@pytest.mark.parametrize(
    ("driver", "before", "after"),
    [
        ("550.54.15", "", "{compat}"),
        ("570.86.10", "/opt/efa", "{compat}:/opt/efa"),
        ("580.65.06", "/opt/efa", "{compat}:/opt/efa"),
        ("580.95.05", "/opt/efa", "/opt/efa"),
        ("590.44.01", "", ""),
        ("1000.1.1", "", ""),
        (None, "/opt/efa", "/opt/efa"),  # no GPU
    ],
)
@pytest.mark.parametrize("sourced", [False, True])
def test_compatibility_libraries_are_for_older_drivers(
    tmp_path: Path, driver: str | None, before: str, after: str, sourced: bool
) -> None:
    (tmp_path / "libcuda.so.580.95.05").touch()
    (tmp_path / "libcuda.so.1").symlink_to("libcuda.so.580.95.05")
    version = tmp_path / "version"
    if driver is not None:
        version.write_text(f"{driver}\n")
    environment = {"CUDA_COMPAT": str(tmp_path), "NVIDIA_VERSION": str(version), "PATH": os.environ["PATH"]}
    environment |= {"LD_LIBRARY_PATH": before} | ({"BASH_ENV": str(COMPAT)} if sourced else {})
    words = ["bash", "-c", "printenv LD_LIBRARY_PATH"] if sourced else [COMPAT, "printenv", "LD_LIBRARY_PATH"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.strip() == after.format(compat=tmp_path)
    assert done.stderr == ""


def parse_head(words: list[str]) -> dict[str, object]:
    """The parameters that the image's script for a head starts Ray with, as Ray's own parser has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Ray's command line imports
        from ray.scripts.scripts import start

    script = ROOT / "docker" / "ray_head.sh"
    assert words[0] == f"/opt/rlvr/{script.name}"
    (options,) = re.findall(r'^ray start (.*) "\$@" &$', script.read_text(), re.MULTILINE)
    return dict(start.make_context("start", [*options.split(), *words[1:]]).params)


@contextmanager
def node(status: int) -> Iterator[int]:
    """The port of something that answers as the agent of a Ray node does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/api/local_raylet_healthz" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def health(port: int) -> int:
    done = subprocess.run([sys.executable, HEALTH_CHECK, str(port)], capture_output=True, timeout=30, check=False)
    return done.returncode


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_the_node(status: int, exit_code: int) -> None:
    with node(status) as port:
        assert health(port) == exit_code


def test_a_node_that_is_not_there_is_unhealthy() -> None:
    assert health(1) == 1


def test_the_health_checks_question_needs_no_token() -> None:
    """What it asks is on Ray's own list of public paths of a node's agent."""
    from ray.dashboard import http_server_agent

    text = Path(str(http_server_agent.__file__)).read_text()
    assert re.search(r'"/api/local_raylet_healthz"', text)
    assert "/api/local_raylet_healthz" in HEALTH_CHECK.read_text()
