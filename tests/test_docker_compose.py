"""The compose file and what it mounts: pinned, guarded, without secrets; the dashboard names metrics that there are."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from orchestration.cli import build_parser, main
from orchestration.monitor import files
from orchestration.run.metrics import METRICS, OTHER, PHASES
from reward_service.api.metrics import Metrics
from tests.dockerfiles import ROOT, Dockerfile
from tests.test_docker_training import parse_head

DOCKER = ROOT / "docker"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return tree


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    assert set(found) == {"head", "reward", "prometheus", "grafana"}
    return found


def dockerfile(service: dict[str, Any]) -> Dockerfile:
    return Dockerfile(ROOT / service["build"]["dockerfile"])


class TestServices:
    def test_images_are_pinned(self, services: dict[str, dict[str, Any]]) -> None:
        for service in services.values():
            pinned = r"[\w/-]+:v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?"
            assert re.fullmatch(pinned, service["image"]), service["image"]

    def test_nobody_is_root_or_may_become_it(self, services: dict[str, dict[str, Any]]) -> None:
        for service in services.values():
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert service["cap_drop"] == ["ALL"]
            assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys()
            if "build" in service:
                *_, user = dockerfile(service).named("USER")
                number = dockerfile(service).arguments().get(user.text.strip("${}"), user.text)
            else:
                number = service["user"]
            assert int(number) > 0

    def test_what_is_written_lies_in_volumes(
        self, services: dict[str, dict[str, Any]], compose: dict[str, Any]
    ) -> None:
        for service in services.values():
            assert service["read_only"] is True
            for volume in service["volumes"]:
                source = volume.split(":")[0]
                if source.startswith("."):
                    assert volume.endswith(":ro"), volume
                else:
                    assert source in compose["volumes"]
        writers = [
            name for name, s in services.items() for v in s["volumes"] if v.split(":")[0] == "ray" and ":ro" not in v
        ]
        assert writers == ["head"]

    def test_everything_has_a_health_check_with_limits(self, services: dict[str, dict[str, Any]]) -> None:
        for service in services.values():
            assert {"test", "interval", "timeout", "start_period", "retries"} == service["healthcheck"].keys()
            assert service["healthcheck"]["test"][0] == "CMD"
        for name in ("head", "reward"):
            (check,) = dockerfile(services[name]).named("HEALTHCHECK")
            assert json.loads(check.text[check.text.index("[") :]) == services[name]["healthcheck"]["test"][1:]

    def test_ports_are_those_of_this_machine_alone(self, services: dict[str, dict[str, Any]]) -> None:
        ports = [port for service in services.values() for port in service["ports"]]
        assert len(ports) == 4
        assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in ports)

    def test_secrets_come_from_files_that_are_in_no_repository(
        self, services: dict[str, dict[str, Any]], compose: dict[str, Any]
    ) -> None:
        assert {name: set(secret) for name, secret in compose["secrets"].items()} == {
            "ray_token": {"file"},
            "trainer_key": {"file"},
            "grafana_password": {"file"},
        }
        for secret in compose["secrets"].values():
            assert secret["file"].startswith("./secrets/")
        ignored = subprocess.run(
            ["git", "check-ignore", "docker/secrets/ray_token"], cwd=ROOT, capture_output=True, timeout=30, check=False
        )
        assert ignored.returncode in (0, 128)  # 128: not a checkout, as from a release's archive
        for service in services.values():
            for name, value in service.get("environment", {}).items():
                if re.search("token|key|passw|secret", name, re.IGNORECASE):
                    assert str(value).startswith("/run/secrets/"), name
            for used in service.get("secrets", ()):
                assert used in compose["secrets"]

    def test_files_that_it_names_are_there(self, services: dict[str, dict[str, Any]], tmp_path: Path) -> None:
        assert main(["monitor", "files", str(tmp_path)]) == 0  # as the first lines say
        for service in services.values():
            if "build" in service:
                assert (DOCKER / service["build"]["context"]).resolve() == ROOT
                assert dockerfile(service).path.is_file()
            for volume in service["volumes"]:
                source = volume.split(":")[0]
                if source.startswith("./monitor/"):
                    assert (tmp_path / source.removeprefix("./monitor/")).exists(), source
                elif source.startswith("./") and not source.startswith("./secrets/"):
                    assert (DOCKER / source).exists(), source

    def test_ray_takes_its_command_and_asks_everybody_for_the_token(self, services: dict[str, dict[str, Any]]) -> None:
        head = services["head"]
        given = parse_head(head["command"])
        assert (given["head"], given["block"], given["dashboard_host"]) == (True, True, "0.0.0.0")
        assert given["runtime_env_agent_port"]
        assert head["environment"]["RAY_AUTH_MODE"] == "token"
        assert head["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"

    def test_our_command_line_takes_the_commands_of_the_image_and_of_its_head(self) -> None:
        (entry_point,) = Dockerfile(DOCKER / "reward_service.Dockerfile").named("ENTRYPOINT")
        parser = build_parser()
        assert parser.parse_args(entry_point.words[3:])
        comments = "".join(line for line in (DOCKER / "compose.yaml").read_text().splitlines() if line.startswith("#"))
        assert "reward keys add trainer --file /etc/rlvr/reward_keys.json" in comments
        parser.parse_args(["reward", "keys", "add", "trainer", "--file", "/etc/rlvr/reward_keys.json"])


def test_the_examples_run_is_scored_by_the_service_that_the_panels_are_about(
    services: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = [line.removeprefix("#").strip() for line in (DOCKER / "compose.yaml").read_text().splitlines()]
    text = re.sub(r"\\\n", " ", "\n".join(line for line in lines))
    (words,) = [shlex.split(line) for line in text.splitlines() if line.startswith("rlvr submit")]
    assert main([*words[1:], "--dry-run", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["run"]
    url = urlsplit(run["reward"]["url"])
    assert url.hostname in services
    assert services[url.hostname]["ports"] == [f"127.0.0.1:{url.port}:{url.port}"]
    assert run["reward"]["api_key_file"] in [f"/run/secrets/{name}" for name in services["head"]["secrets"]]
    assert any(f">{Path('secrets', Path(run['reward']['api_key_file']).name)}" in line for line in text.splitlines())


def test_digests_are_written_behind_tags(tmp_path: Path) -> None:
    """By a `docker` of the test's, as here is no registry."""
    shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns("secrets"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    fake = tmp_path / "bin" / "docker"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "sha256:%064d\\n" "${#6}"\n')  # another for another length of the name
    fake.chmod(0o755)
    command = ["make", "digests"]
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    for _ in range(2):  # a second time it writes the same
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60)
    text = "".join(path.read_text() for path in sorted((tmp_path / "docker").glob("*.*")) if path.suffix != ".py")
    images = re.findall(r"^ *(?:FROM|ARG BASE=|image:) *([a-z][a-z/]*:[\w.-]+)(@\S+)?", text, re.MULTILINE)
    assert len(images) == 5
    assert {digest for _, digest in images} == {f"@sha256:{len(image):064d}" for image, _ in images}


class TestPrometheus:
    def test_it_asks_rays_nodes_and_the_reward_service(self, services: dict[str, dict[str, Any]]) -> None:
        from ray._private import ray_constants

        config = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())
        jobs = {job["job_name"]: job for job in config["scrape_configs"]}
        (discovery,) = jobs["ray"]["file_sd_configs"]
        # Ray's file, at the place it has in the head: its links are absolute.
        assert discovery["files"] == [f"/tmp/ray/{ray_constants.PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
        for name in ("prometheus", "grafana"):
            assert "ray:/tmp/ray:ro" in services[name]["volumes"]
        assert "ray:/tmp/ray" in services["head"]["volumes"]
        assert jobs["reward"]["static_configs"] == [{"targets": ["reward:8300"]}]
        (mounted,) = (v for v in services["prometheus"]["volumes"] if "prometheus.yaml" in v)
        assert f"--config.file={mounted.split(':')[1]}" in services["prometheus"]["command"]


class TestGrafana:
    def test_it_finds_its_data_and_its_dashboards(self, services: dict[str, dict[str, Any]]) -> None:
        folder = DOCKER / "grafana" / "provisioning"
        (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
        assert source["url"] == services["head"]["environment"]["RAY_PROMETHEUS_HOST"]
        assert source["name"] == "Prometheus"
        providers = yaml.safe_load((folder / "dashboards" / "dashboards.yaml").read_text())["providers"]
        paths = [provider["options"]["path"] for provider in providers]
        targets = {volume.split(":")[1] for volume in services["grafana"]["volumes"]}
        assert paths == ["/etc/rlvr/dashboards", "/tmp/ray/session_latest/metrics/grafana/dashboards"]
        assert {"/etc/rlvr/dashboards", "/tmp/ray", "/etc/grafana/provisioning"} <= targets
        for panel in dashboard()["panels"]:
            assert panel["datasource"]["uid"] == source["uid"]

    def test_every_metric_of_the_dashboard_is_exported(self) -> None:
        named = {name for expression in expressions() for name in metrics_in(expression)}
        assert len(named) > 10
        assert sorted(named - reward_metrics() - our_gauges() - rays_own()) == []

    def test_a_metric_that_nobody_exports_is_seen(self) -> None:
        assert metrics_in("sum by (le) (rate(reward_requests_totals[1m]))") == {"reward_requests_totals"}
        assert "reward_requests_totals" not in reward_metrics() | our_gauges() | rays_own()

    def test_it_shows_what_a_run_is_about(self) -> None:
        text = " ".join(expressions())
        for metric in ("rollout_tokens_per_s", "adapter_version", "reward_requests_total", "reward_queued_items"):
            assert metric in text

    def test_panels_do_not_cover_each_other(self) -> None:
        places = [tuple(panel["gridPos"][key] for key in "xy") for panel in dashboard()["panels"]]
        assert len(set(places)) == len(places)
        assert len({panel["id"] for panel in dashboard()["panels"]}) == len(places)


def dashboard() -> dict[str, Any]:
    return files.dashboard()


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def metrics_in(expression: str) -> set[str]:
    """Names of metrics in a PromQL expression: words that are neither a function nor a label of a grouping."""
    bare = re.sub(r"\bby \([^)]*\)|\{[^}]*\}|\[[^\]]*\]", " ", expression)
    return {word for word in re.findall(r"\b[a-z]\w*\b(?!\s*\()", bare) if word not in ("by", "sum", "max", "or")}


def reward_metrics() -> set[str]:
    """What the reward service's /metrics says of itself."""
    statistics = SimpleNamespace(rewards={}, restarts={})
    pool: Any = SimpleNamespace(statistics=statistics, queued_items=0, num_workers=1)
    names: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", Metrics(pool, None).text().decode(), re.MULTILINE):
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


def our_gauges() -> set[str]:
    """The keys of what actors hand to their gauges, read from the source; Ray puts `ray_` in front, we `rlvr_`."""
    names: set[str] = set()
    for path in ("rollout_server/counters.py", "orchestration/cluster/actors.py"):
        names |= set(re.findall(r'"(\w+)": (?=\(?load\.|float\(|metrics\.)', (ROOT / path).read_text()))
    assert {"rollout_tokens_per_s", "learner_step"} <= names
    names |= {"groups_total", "groups_by_age_total", "step", "step_eval_strict_accuracy"}
    names |= {f"step_{name.replace('{of}', of)}" for name in METRICS for of in ("mean", "min", "max")} | {
        f"step_{phase}_s" for phase in (*PHASES, OTHER)
    }
    return {f"ray_rlvr_{name}" for name in names}


def rays_own() -> set[str]:
    """What each of Ray's nodes reports of itself, and what is in the panels of Ray's own dashboard."""
    from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    text = Path(str(default_dashboard_panels.__file__)).read_text()
    return {f"ray_{name}" for name in METRICS_GAUGES} | set(re.findall(r"\bray_\w+", text))
