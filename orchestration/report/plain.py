"""One line per event, for log files and for log services that read metrics out of lines."""

from __future__ import annotations

import errno
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from orchestration.report.outcome import accuracies, read_outcome
from orchestration.report.text import duration, head, one_line, percent, sanitise, shares, tail
from orchestration.run.metrics import OTHER, PHASES, Number
from orchestration.run.reporter import Level
from orchestration.settings.config import RunConfig

LINE_METRICS = (
    "reward_mean",
    "reward_std",
    "accuracy",
    "response_tokens_mean",
    "truncated_fraction",
    "rollout_tokens_per_s",
    "learner_tokens_per_s",
    "kl_to_sampler",
    "clip_fraction",
    "flat_group_fraction",
    "policy_age_mean",
    "loss",
    "grad_norm",
    "entropy",
    "publish_ms",
    "step_s",
    *(f"{phase}_s" for phase in (*PHASES, OTHER)),
)
"""Metrics of the line of a step, where they are known."""
EVALUATION_METRICS = ("eval_strict_accuracy", "eval_lenient_accuracy")
"""Metrics of the line of an evaluation."""
HEARTBEAT_S = 30.0
"""A long phase says so often how far it is, seconds."""
_STEP_PHASES = ("generation", "scoring", "learning", "publishing")


def metric_regex(name: str) -> str:
    """The regular expression that finds a metric's number in these lines; its one group is the number."""
    return rf"\s{re.escape(name)}=([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)"


class PlainReporter:
    """Writes `HH:MM:SS event …` lines, each flushed."""

    def __init__(
        self,
        stream: TextIO,
        *,
        now: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
    ) -> None:
        self._stream, self._now, self._time_of_day = stream, now, time_of_day
        self._config: RunConfig | None = None
        self._counted, self._total = "", 0
        self._last_said = now()

    def start(self, config: RunConfig, machine_line: str) -> None:
        self._config = config
        self._say(
            f"start recipe={config.recipe} model={config.model.name} seed={config.seed} steps={config.max_steps} "
            f"prompts_per_step={config.prompts_per_step} num_generations={config.rollout.num_generations}"
        )
        self._say(f"machine {machine_line}")

    def phase(self, name: str, detail: str = "", total: int | None = None) -> None:
        doing = f"{name} {detail}".strip()
        if total is not None:
            self._counted, self._total = doing, total
        if name not in _STEP_PHASES:  # those are in the line of the step
            self._say(doing + (f", 0 of {total}" if total else ""))

    def progress(self, done: int, total: int) -> None:
        if total == self._total and self._now() - self._last_said >= HEARTBEAT_S:
            self._say(f"{self._counted}, {done} of {total}")

    def step(self, row: Mapping[str, Number]) -> None:
        of = f"/{self._config.max_steps}" if self._config is not None else ""
        known = ((name, value) for name in LINE_METRICS if (value := row.get(name)) is not None)
        figures = (f"{name}={value:.6g}" for name, value in known if math.isfinite(value))
        self._say(f"step {row['step']}{of} {' '.join(figures)}")

    def example(self, prompt_text: str, completion_text: str, rewards: Mapping[str, float | None]) -> None:
        earned = " ".join(
            f"{name}: {'not scored' if value is None else f'{value:g}'}" for name, value in rewards.items()
        )
        prompt = _quoted(tail(sanitise(prompt_text), max_chars=240, max_lines=8))
        completion = _quoted(head(sanitise(completion_text), max_chars=600, max_lines=20))
        self._say(f"example ({earned}) prompt {prompt} completion {completion}")

    def note(self, level: Level, message: str) -> None:
        self._say(f"{level}: {message}")

    def evaluation(self, when: str, accuracies: Mapping[str, float], n: int) -> None:
        figures = " ".join(f"eval_{name}_accuracy={accuracy:.4f}" for name, accuracy in accuracies.items())
        self._say(f"evaluation {when} {figures} problems={n}")

    def finish(self, summary: Mapping[str, Any]) -> None:
        outcome = read_outcome(summary, self._config)
        self._say(outcome.headline)
        of = f" of {outcome.num_problems} held-out problems" if outcome.num_problems else ""
        for comparison in outcome.comparisons:
            interval = ", 95 % interval in brackets" if comparison.difference is not None else ""
            self._say(f"{comparison.name} accuracy{of} {accuracies(comparison)}: {comparison.change}{interval}")
        self._say(f"tokens {outcome.tokens}")
        parts = ", ".join(f"{name} {percent(share)}" for name, share in shares(dict(outcome.seconds), at_least=0.005))
        self._say(f"time {duration(outcome.wall_s)}: {parts}")
        self._say(f"run folder {outcome.run_dir}")
        for purpose, command in outcome.next_commands:
            self._say(f"to {purpose}: {command}")

    def close(self) -> None:
        self._stream.flush()

    def _say(self, line: str) -> None:
        self._last_said = self._now()
        encoding = self._stream.encoding or "utf-8"
        text = f"{self._time_of_day()} {one_line(line)}\n"
        try:
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except OSError as error:  # a log on a full disk: the run waits for room, and so does what is said
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise


def _quoted(text: str) -> str:
    """Untrusted text as one JSON string. A word before `=` is set apart, so that no completion can say
    `reward_mean=9` and be read as a metric."""
    return re.sub(r"(?<=\w)=", " =", json.dumps(text, ensure_ascii=False))
