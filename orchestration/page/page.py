"""The page of one or several runs: everything in one HTML text."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib import resources
from typing import Any, Final

import yaml

from orchestration.page.chart import NUM_COLOURS, NUM_DASHES, Line, chart
from orchestration.page.data import Run, shown_completion
from orchestration.report.outcome import Comparison, accuracies, read_outcome
from orchestration.report.text import duration, percent

PHASES: Final = ("generation", "scoring", "learning", "publishing", "evaluation", "other")
_SPREAD: Final = 1.96


@dataclass(frozen=True, kw_only=True, slots=True)
class _Figure:
    """A chart of some figures of `metrics.jsonl`, by their names there."""

    title: str
    names: Sequence[str]
    note: str = ""


REWARDS_NOTE: Final = "Means over a step's completions; the band is 95 % over its groups."
FIGURES: Final[Mapping[str, Sequence[_Figure]]] = {
    "Speed": (
        _Figure(title="Tokens a second", names=("rollout_tokens_per_s", "learner_tokens_per_s")),
        _Figure(title="Publishing, ms", names=("publish_ms",)),
        _Figure(title="A step, seconds", names=("step_s", *(f"{phase}_s" for phase in PHASES))),
    ),
    "Is it still on policy?": (
        _Figure(title="Age of completions, versions", names=("policy_age_mean", "policy_age_max")),
        _Figure(title="KL to the sampler, nats", names=("kl_to_sampler_k3",)),
        _Figure(title="Sampler correction", names=("importance_sampling_weight_mean", "effective_sample_share")),
        _Figure(title="Served against trained, nats", names=("probe_difference",)),
        _Figure(title="Clipped tokens", names=("clip_fraction",)),
        _Figure(title="KL to the base model, nats", names=("kl_to_ref",)),
    ),
    "The policy": (
        _Figure(title="Entropy, nats", names=("entropy",)),
        _Figure(title="Gradient norm", names=("grad_norm",)),
        _Figure(title="Completion length, tokens", names=("response_tokens_mean", "response_tokens_max")),
        _Figure(title="Alarms that hold", names=("alarms",)),
        _Figure(title="Shares", names=("truncated_fraction", "flat_group_fraction"), note="Cut off; flat groups."),
    ),
}


@dataclass(slots=True)
class _Page:
    runs: Sequence[Run]
    parts: list[str] = field(default_factory=list)

    def section(self, title: str, content: Iterable[str], *, kind: str = "charts") -> None:
        """Adds a section, unless all of its content is empty."""
        shown = "".join(content)
        if shown:
            self.parts.append(f'<section><h2>{escape(title)}</h2><div class="{kind}">{shown}</div></section>')


def render(runs: Sequence[Run], *, refresh_s: float | None = None) -> str:
    """The page's HTML.

    Args:
        runs: one, or several to be compared.
        refresh_s: the page loads itself anew after so many seconds.
    """
    page = _Page(runs)
    page.section("Before and after", [_outcomes(runs)], kind="table")
    page.section("Alarms", [_alarms(runs)], kind="table")
    page.section("Rewards", _reward_charts(runs))
    for title, figures in FIGURES.items():
        page.section(title, [_figure(runs, one) for one in figures])
    page.section("Where the time went", [_times(runs)], kind="table")
    page.section("Completions", [_browser(runs)], kind="browser")
    page.section("Settings", [_settings(run) for run in runs], kind="settings")
    names = ", ".join(run.name for run in runs)
    again = f'<meta http-equiv="refresh" content="{refresh_s:g}">' if refresh_s else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(names)}</title>'
        f"<style>{_asset('page.css')}</style></head><body><header><h1>{escape(names)}</h1>{_headlines(runs)}</header>"
        f"<main>{''.join(page.parts)}</main><script>{_asset('page.js')}</script></body></html>\n"
    )


@cache
def _asset(name: str) -> str:
    return resources.files("orchestration.page").joinpath(name).read_text()


def _headlines(runs: Sequence[Run]) -> str:
    return "".join(f"<p>{escape(_headline(run))}</p>" for run in runs)


def _headline(run: Run) -> str:
    model, task = run.config.get("model", {}).get("name"), run.config.get("data", {}).get("kind")
    parts = [f"{run.name}: {model} on {task}", run.status, f"{len(run.rows)} of {run.config.get('max_steps')} steps"]
    if seconds := run.summary.get("wall_s"):
        parts.append(duration(seconds))
    if tokens := (run.summary.get("tokens") or {}).get("generated"):
        parts.append(f"{tokens:,} tokens sampled")
    if (control := run.config.get("reward", {}).get("control", "none")) != "none":
        parts.append(f"control: {control} rewards")
    return ", ".join(parts) + f". Read {time.strftime('%Y-%m-%d %H:%M:%S')}."


def _outcomes(runs: Sequence[Run]) -> str:
    rows = [
        (run.name, comparison)
        for run in runs
        if run.summary
        for comparison in read_outcome(run.summary, None).comparisons
    ]
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(one.name)}</td><td>{escape(accuracies(one))}</td>"
        f"<td>{escape(one.change)}</td></tr>"
        for name, one in rows
    )
    head = "<tr><th>run</th><th>rule</th><th>held-out accuracy</th><th>change, 95 % interval</th></tr>"
    return f"<table>{head}{cells}</table>{_differences(runs[0], runs[1:])}"


def _differences(first: Run, others: Sequence[Run]) -> str:
    """By how much more each run gained than the first, with an interval: normal, from the two runs' own."""
    told = []
    for other in others:
        for mine, theirs in zip(*(read_outcome(run.summary, None).comparisons for run in (first, other)), strict=False):
            if (found := _difference(mine, theirs)) is not None:
                value, margin = found
                told.append(
                    f"<li>{escape(other.name)} gained {100 * value:+.1f} points more than {escape(first.name)} by the "
                    f"{escape(mine.name)} rule [{100 * (value - margin):+.1f}, {100 * (value + margin):+.1f}]</li>"
                )
    return f"<ul>{''.join(told)}</ul>" if told else ""


def _difference(first: Comparison, other: Comparison) -> tuple[float, float] | None:
    if first.name != other.name or first.difference is None or other.difference is None:
        return None
    widths = [(one.high - one.low) / 2 for one in (first.difference, other.difference)]
    return other.difference.estimate - first.difference.estimate, math.hypot(*widths)


def _reward_charts(runs: Sequence[Run]) -> Iterable[str]:
    marks = [(float(alarm["step"]), alarm["name"]) for run in runs for alarm in run.alarms]
    yield chart("Reward", _lines(runs, ["reward_mean"], bands=True), note=REWARDS_NOTE, marks=marks)
    yield chart("Held-out accuracy", list(_held_out(runs)), marks=marks)
    yield chart("Accuracy in training, by the strict rule", _lines(runs, ["accuracy"]))
    names = list(dict.fromkeys(name for run in runs for name in run.reward_names))
    if len(names) > 1:
        yield chart("Each reward", _lines(runs, [f"reward_{name}_mean" for name in names]))
    for run in runs:
        yield from _by_kind(run)


def _by_kind(run: Run) -> Iterable[str]:
    """What was learned from, by category, and by difficulty where that is something else."""
    shown: list[list[Sequence[tuple[float, float]]]] = []
    for kind in ("category", "difficulty"):
        found = run.by(kind, "total")
        if len(found) > 1 and list(found.values()) not in shown:
            shown.append(list(found.values()))
            lines = [
                Line(name=name, points=points, colour=index % NUM_COLOURS)
                for index, (name, points) in enumerate(found.items())
            ]
            yield chart(f"Reward by {kind}: {run.name}", lines)


def _held_out(runs: Sequence[Run]) -> Iterable[Line]:
    """By rule, at the evaluations of each run."""
    for index, run in enumerate(runs):
        rules = list(dict.fromkeys(rule for event in run.evaluations for rule in event["accuracies"]))
        for number, rule in enumerate(rules):
            points = [
                (event["step"], event["accuracies"][rule]) for event in run.evaluations if rule in event["accuracies"]
            ]
            name = f"{run.name} {rule}" if len(runs) > 1 else rule
            yield Line(name=name, points=points, colour=(2 * index + number) % NUM_COLOURS)


def _alarms(runs: Sequence[Run]) -> str:
    """A row for each that was told, with its steps, its latest figures, and links to the completions that show it."""
    rows = [
        _alarm(run, [alarm for alarm in run.alarms if alarm["name"] == name])
        for run in runs
        for name in dict.fromkeys(alarm["name"] for alarm in run.alarms)
    ]
    head = "<tr><th>alarm</th><th>steps at which it was told</th><th>what it says, completions that show it</th></tr>"
    return f"<table class=alarms>{head}{''.join(rows)}</table>" if rows else ""


def _alarm(run: Run, told: Sequence[Mapping[str, Any]]) -> str:
    last = told[-1]
    steps = " ".join(f'<a href="#step={alarm["step"]}">{alarm["step"]}</a>' for alarm in told)
    examples = " ".join(f'<a href="#id={escape(one)}">{escape(one)}</a>' for one in last.get("examples") or ())
    says = f"{escape(last['sentence'])}<br><small>{escape(_evidence(last.get('evidence') or {}))}</small> {examples}"
    name = f"{escape(last['name'])}<br><small>{escape(run.name)}</small>"
    return f"<tr><td>{name}</td><td>{steps}</td><td>{says}</td></tr>"


def _evidence(figures: Mapping[str, Any]) -> str:
    told = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in figures.items()}
    return ", ".join(f"{name} {value}" for name, value in told.items())


def _figure(runs: Sequence[Run], one: _Figure) -> str:
    return chart(one.title, _lines(runs, one.names), note=one.note)


def _lines(runs: Sequence[Run], names: Sequence[str], *, bands: bool = False) -> list[Line]:
    """One colour a figure with one run, one colour a run with one figure; with several of both a colour a figure, a
    pattern of dashes a run, and both in the name."""
    lines = []
    for index, run in enumerate(runs):
        for number, name in enumerate(names):
            both = len(runs) > 1 and len(names) > 1
            shown = f"{run.name} {name}" if both else run.name if len(runs) > 1 else name
            colour = (number if both or len(runs) == 1 else index) % NUM_COLOURS
            band = _band(run, name) if bands else ()
            dash = index % NUM_DASHES if both else 0
            lines.append(Line(name=shown, points=run.series(name), band=band, colour=colour, dash=dash))
    return lines


def _band(run: Run, name: str) -> list[tuple[float, float, float]]:
    """Around a reward's mean: its spread over the step's completions, over the square root of the groups, as the
    completions of a group are alike."""
    found = []
    for row in run.rows:
        mean, std, groups = row.get(name), row.get(name.replace("_mean", "_std")), row.get("num_groups")
        if mean is not None and std is not None and groups:
            margin = _SPREAD * std / math.sqrt(groups)
            found.append((row["step"], mean - margin, mean + margin))
    return found


def _times(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        ended = run.summary.get("seconds") or {}  # with the evaluations, which no step's row counts
        seconds = {phase: ended.get(phase) or sum(row.get(f"{phase}_s") or 0.0 for row in run.rows) for phase in PHASES}
        total = sum(seconds.values())
        if not total:
            continue
        bars = "".join(
            f'<span class="bar c{index}" style="width:{100 * spent / total:.2f}%" '
            f'title="{phase}: {duration(spent)} ({percent(spent / total)})"></span>'
            for index, (phase, spent) in enumerate(seconds.items())
        )
        told = "".join(
            f'<span class="c{index}">{phase} {percent(spent / total)}</span>'
            for index, (phase, spent) in enumerate(seconds.items())
            if spent
        )
        legend = f"<div class=legend>{told}</div>"
        rows.append(f"<tr><td>{escape(run.name)}</td><td><div class=bars>{bars}</div>{legend}</td></tr>")
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _browser(runs: Sequence[Run]) -> str:
    rows = [shown_completion(row) | {"u": index} for index, run in enumerate(runs) for row in run.completions]
    if not rows:
        return ""
    shown, total = len(rows), sum(run.num_completions for run in runs)
    told = f"The latest {shown:,} of {total:,} completions." if shown < total else f"All {total:,} completions."
    prompts = {
        prompt: index for index, prompt in enumerate(dict.fromkeys(row["q"] for row in rows))
    }  # a group's is one
    rows = [row | {"q": prompts[row["q"]]} for row in rows]
    data = {"runs": [run.name for run in runs], "prompts": [*prompts], "rows": rows}
    return (
        f'<p>{told}</p>{_asset("page.form.html")}<script type="application/json" id=completions>{_json(data)}</script>'
    )


def _settings(run: Run) -> str:
    shown = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
    return f"<details><summary>{escape(run.name)}</summary><pre>{escape(shown)}</pre></details>"


def _json(value: Any) -> str:
    """For a script element: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
