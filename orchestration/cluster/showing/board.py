"""A run as Ray's dashboard and Prometheus see it: its figures as metrics, its job's line, and where to ask for both."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from ray.util.metrics import Gauge

from orchestration.cluster.showing.job import metric_targets, show_job, submission_id
from orchestration.monitor.lines import run_line
from orchestration.monitor.targets import Announcement, describe
from orchestration.run.metrics import AGE_PREFIX
from orchestration.settings.config import RunConfig

PERIOD_S = 2.0
OUTCOMES = ("started", "finished", "asked_again", "lost", "flat", "refilled", "stale")
"""Of groups: `asked_again` after their worker was lost, `lost` for good, `flat` among those learned from, `refilled`
for being flat, `stale` when any completion is older than the policy that learns from it."""


class Board:
    """A sink of `orchestration.tracking`. It shows what Ray knows of once `begin` was called.

    Args:
        groups: counts of the pool, by outcome; the rest of `OUTCOMES` is counted here, from the steps.
    """

    def __init__(self, config: RunConfig, *, run_id: str, folder: Path, groups: Mapping[str, int]) -> None:
        self._config, self._folder, self._groups = config, folder, groups
        self._run = run_id.rpartition("-")[0]
        self._announcement = Announcement(run_id)
        self._counted: Counter[str] = Counter()
        self._ages: Counter[int] = Counter(dict.fromkeys(range(config.max_staleness + 1), 0))
        self._gauges: dict[str, Gauge] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._reward_url: Callable[[], str | None] = lambda: None

    def begin(self, reward_url: Callable[[], str | None]) -> None:
        """The rooms are up; `reward_url` says where the reward service is now."""
        self._reward_url = reward_url
        self._say("", {})
        self._refresh()
        self._thread = threading.Thread(target=self._follow, name="board", daemon=True)
        self._thread.start()

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if name.startswith(AGE_PREFIX):
                self._ages[int(name.removeprefix(AGE_PREFIX))] += int(value)
            else:
                self._set(re.sub(r"\W", "_", f"step_{name}", flags=re.ASCII), value)
        if "num_groups" in figures:
            self._set("step", step)
            self._counted["flat"] += round(figures["flat_group_fraction"] * figures["num_groups"])
            self._counted["refilled"] += int(figures["dropped_flat_groups"])
            ages = {int(name.removeprefix(AGE_PREFIX)): v for name, v in figures.items() if name.startswith(AGE_PREFIX)}
            self._counted["stale"] += int(sum(number for age, number in ages.items() if age > 0))
            self._say(run_line({"step": step, **figures}, self._config.max_steps), figures)
        self._refresh()

    def artefact(self, path: Path, name: str) -> None:
        """Files are in the run's folder."""

    def close(self, *, finished: bool) -> None:
        self._closed.set()
        self._announcement.take_back()

    def _follow(self) -> None:
        while not self._closed.wait(PERIOD_S):
            try:
                self._refresh()
            except Exception:  # Ray is gone, or the disk full: nothing that a run should hear of twice
                return

    def _refresh(self) -> None:
        counts = {**self._groups, **self._counted}
        for outcome in OUTCOMES:
            self._set("groups_total", counts.get(outcome, 0), outcome=outcome)
        for age, number in list(self._ages.items()):
            self._set("groups_by_age_total", number, age=str(age))
        if not self._closed.is_set():
            self._announcement.say(describe(self._run, ray=metric_targets(), reward_url=self._reward_url()))

    def _say(self, line: str, figures: Mapping[str, float]) -> None:
        """Beside the job, where this is one."""
        if (name := submission_id()) is not None:
            shown = {name: f"{figures[name]:.6g}" for name in ("reward_mean", "accuracy") if name in figures}
            speeds = {n: f"{figures[n]:.0f}" for n in ("rollout_tokens_per_s", "learner_tokens_per_s") if n in figures}
            of = {"recipe": self._config.recipe, "run_folder": str(self._folder.absolute()), "progress": line}
            show_job(name, line or "the rooms are up", {**of, **shown, **speeds})

    def _set(self, name: str, value: float, **tags: str) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"rlvr_{name}", description=name.replace("_", " "), tag_keys=("run", *tags))
        self._gauges[name].set(value, tags={"run": self._run, **tags})
