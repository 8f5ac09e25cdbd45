"""A real run, seen: in Ray's dashboard by a browser, and by a Prometheus that scrapes it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestration.cli import main
from orchestration.monitor import files, programs
from orchestration.monitor.asking import ask, query, values
from orchestration.monitor.board_pages import HEALTH
from orchestration.monitor.files import write_files
from orchestration.monitor.panels import PANELS
from tests.listening import family_of, listening, open_to_others
from tests.orchestration.page.browser import opened
from tests.waiting import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROMTOOL = shutil.which("promtool", path=f"{Path(programs.find_prometheus() or '/').parent}:{os.environ['PATH']}")


PACED = "import time\n\ndef reward(completion, reference, params):\n    time.sleep(0.05)\n    return 0.0\n"
"""Leaves the processor to who looks on."""
PACE = (
    "reward.rewards=[{name: gsm8k_correctness}, {name: paced}]",
    "reward.custom_rewards=[{name: paced, target: 'paced:reward'}]",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that goes on and on, with a dashboard; its state is its own."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("seen")
        patch.setenv("RLVR_STATE", str(root / "state"))
        patch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        (root / "paced.py").write_text(PACED)
        words = [
            "train",
            "tiny",
            *PACE,
            f"run_dir={root}/run",
            "max_steps=10000",
            "max_staleness=1",
            "data.num_eval=20",
        ]
        words.append(f"monitor={str(programs.find_prometheus() is not None).lower()}")
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestration.cli", *words], stdout=log, stderr=log, cwd=root
            )
        (root / "pid").write_text(str(process.pid))
        try:
            metrics = root / "run" / "metrics.jsonl"
            until(lambda: process.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") > 2), 240)
            assert process.poll() is None, (root / "log").read_text()
            yield root
        finally:
            programs.down()
            process.send_signal(signal.SIGINT)
            process.wait(120)


@pytest.mark.cluster
def test_the_dashboard_shows_the_throughput(run: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    with opened(CHROMIUM, f"{dashboard_of(run)}/#/actors") as page:
        text = "document.body.innerText"
        until(lambda: re.search(r"RolloutWorker 0 · v\d+ · [\d,]+ tok/s · \d+ running", page.evaluate(text)), 180)

        def step() -> int:
            return max(map(int, re.findall(r"LearnerRank 0 · step (\d+)", page.evaluate(text))), default=0)

        first = step()
        until(lambda: step() > first, 180)


def dashboard_of(run: Path) -> str:
    found = re.search(r"dashboard (http://\S+)", (run / "log").read_text())
    assert found is not None
    return found.group(1)


@pytest.mark.cluster
def test_its_metrics_and_overview_pages_have_our_panels(run: Path) -> None:
    if CHROMIUM is None or programs.find_prometheus() is None or shutil.which("grafana-server") is not None:
        pytest.skip("no chromium or prometheus on the PATH, or a Grafana")
    frames = "[...document.querySelectorAll('iframe')].map(one => one.src).join(' ')"
    with opened(CHROMIUM, f"{dashboard_of(run)}/#/metrics") as page:
        until(lambda: "/d/rlvr/?" in page.evaluate(frames), 180)
        assert "Prometheus and Grafana" not in page.evaluate("document.body.innerText")
        board = page.evaluate(frames).split()[0]
        page.evaluate("location.hash = '#/overview'")
        until(lambda: {"24", "41"} <= set(re.findall(r"/d-solo/rlvr/\S*panelId=(\d+)", page.evaluate(frames))), 180)
    with opened(CHROMIUM, board) as page:
        drawn = "document.querySelectorAll('figure svg').length"
        until(lambda: page.evaluate(drawn) == len(PANELS), 180)  # it loads itself anew
        titles = page.evaluate("[...document.querySelectorAll('figcaption')].map(one => one.firstChild.data).join('|')")
        assert titles.split("|") == [panel.title for panel in PANELS]


@pytest.mark.cluster
def test_all_of_it_listens_on_loopback_alone(run: Path) -> None:
    """GCS, raylet, metrics, dashboard and its agents, actors, the reward service, and where ranks meet."""
    family = family_of(int((run / "pid").read_text()))
    assert {"gcs_server", "raylet"} <= {name for name, _, _ in listening(family)}
    assert len(listening(family)) > 10
    assert open_to_others(family) == []


@pytest.mark.cluster
def test_every_panel_has_data_and_a_step_has_the_figures_of_its_row(run: Path) -> None:
    if programs.find_prometheus() is None:
        pytest.skip("no prometheus on the PATH, nor as RLVR_PROMETHEUS")
    url = programs.up(scrape_s=1.0).prometheus
    assert programs.up().prometheus == url
    until(lambda: not empty(url), 180)
    figures = {each.expr: each.figure for panel in PANELS for each in panel.queries if each.figure}

    def same() -> int:
        """How many figures are those of the row of the step that was scraped."""
        step = int(float(query(url, "ray_rlvr_step")[0]["value"][1]))
        rows = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
        row = next(row for row in rows if row["step"] == step)
        seen = {name: query(url, expr) for expr, name in figures.items() if row.get(name) is not None}
        return len(seen) * all(float(found[0]["value"][1]) == row[name] for name, found in seen.items())

    until(lambda: same() > 20, 180)  # a step may end between two queries
    assert programs.down()


def empty(url: str) -> list[str]:
    return [title for title, lines in values(url).items() if all(v is None for v in lines.values())]


def test_nothing_stays_of_a_start_that_is_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody would find it again; also where the machine's clock is set meanwhile, and with it the time of its boot."""
    program = tmp_path / "prometheus"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid; exec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("RLVR_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("RLVR_PROMETHEUS", str(program))

    def interrupted(_url: str) -> bytes:
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
        booted = psutil.boot_time()
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3600)
        raise KeyboardInterrupt

    monkeypatch.setattr(programs, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        programs.up()
    assert programs.running() is None
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_pages_that_have_ended_begin_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With their Prometheus, which alone shows nobody a panel."""
    if programs.find_prometheus() is None or shutil.which("grafana-server") is not None:
        pytest.skip("no prometheus on the PATH, nor as RLVR_PROMETHEUS, or a Grafana")
    monkeypatch.setenv("RLVR_STATE", str(tmp_path))
    try:
        pid = programs.up().processes["pages"][0]
        assert programs.up().processes["pages"][0] == pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: programs.up().processes["pages"][0] != pid)
        assert json.loads(ask(f"{programs.up().pages}/api/health")) == HEALTH
    finally:
        assert programs.down()


def test_a_disk_without_room_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A write that fails does not say where, unlike an open."""

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "atomic_write", full)
    assert main(["monitor", "files", str(tmp_path / "here")]) == 1
    assert f"rlvr: {tmp_path}/here cannot be written: No space left on device;" in capsys.readouterr().err


def test_prometheus_takes_the_files(tmp_path: Path) -> None:
    write_files(tmp_path, targets=tmp_path / "targets", prometheus_url="http://127.0.0.1:9090", scrape_s=5.0)
    board = json.loads((tmp_path / "dashboards" / "rlvr.json").read_bytes())
    assert len({panel["id"] for panel in board["panels"]}) == len(PANELS)
    if PROMTOOL is None:
        pytest.skip("no promtool on the PATH")
    words = [PROMTOOL, "check", "config", str(tmp_path / "prometheus.yml")]
    checked = subprocess.run(words, check=False, capture_output=True)
    assert checked.returncode == 0, checked.stderr
