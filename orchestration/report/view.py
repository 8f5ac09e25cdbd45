"""The live view as a pure function of its state, the time and the width. No terminal here."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestration.report.outcome import Outcome, accuracies
from orchestration.report.text import (
    DASH,
    duration,
    fixed,
    head,
    number,
    one_line,
    percent,
    sanitise,
    shares,
    sparkline,
    tail,
)
from orchestration.run.metrics import Number
from orchestration.settings.config import RunConfig

TWO_COLUMNS = 110
"""From this width on the figures stand in two columns."""
MAX_BAR, MAX_SPARK, MAX_EXAMPLE = 50, 32, 110
_LABEL_WIDTH = 11
_PHASE_ORDER = ("generation", "scoring", "learning", "publishing", "evaluation", "other")
_DOT = " · "


@dataclass(slots=True)
class ViewState:
    """What the live view shows; the reporter writes it, the refresh thread only reads it."""

    started: float
    max_steps: int = 0
    num_steps: int = 0
    phase: str = "starting"
    """Empty: nothing goes on."""
    phase_detail: str = ""
    phase_started: float = 0.0
    bar_phase: str = ""
    """The last phase that has a total; it may go on while another one is shown."""
    bar_done: int = 0
    bar_total: int = 0
    row: Mapping[str, Number] = field(default_factory=dict)
    rewards: list[float | None] = field(default_factory=list)
    step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=10))
    evaluations: list[tuple[str, Mapping[str, float]]] = field(default_factory=list)


def render(state: ViewState, now: float, width: int) -> RenderableType:
    """The view in at most `width` columns: bars first, figures below once there are any.

    Args:
        state: What is known of the run.
        now: Of the clock that `state` has its times from, seconds.
        width: Columns of the terminal.
    """
    parts: list[RenderableType] = [_bars(state, now, width)]
    if state.row or state.evaluations:
        parts.append(_figures(state, width))
    return Group(*parts)


def _bars(state: ViewState, now: float, width: int) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=_LABEL_WIDTH, style="bold")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    bar_width = max(10, min(MAX_BAR, width - _LABEL_WIDTH - 32))
    if state.max_steps:
        times = [duration(now - state.started)]
        remaining = state.max_steps - state.num_steps
        if state.step_seconds and remaining > 0:
            pace = sum(state.step_seconds) / len(state.step_seconds)
            times.append(f"{duration(pace * remaining)} left")
        table.add_row(
            "steps",
            ProgressBar(total=state.max_steps, completed=state.num_steps, width=bar_width),
            f"{state.num_steps}/{state.max_steps}{_DOT}{_DOT.join(times)}",
        )
    if not state.phase:
        return table
    elapsed = duration(max(0.0, now - state.phase_started))
    if state.bar_total and state.bar_phase == state.phase:
        table.add_row(state.phase, _phase_bar(state, bar_width), f"{state.bar_done}/{state.bar_total}{_DOT}{elapsed}")
    else:
        pulse = ProgressBar(total=None, pulse=True, animation_time=now, width=bar_width)
        beside = f"{state.bar_phase} {state.bar_done}/{state.bar_total}" if _bar_is_open(state) else ""
        table.add_row(state.phase, pulse, _DOT.join(part for part in (elapsed, state.phase_detail, beside) if part))
    return table


def _bar_is_open(state: ViewState) -> bool:
    return 0 < state.bar_done < state.bar_total


def _phase_bar(state: ViewState, width: int) -> ProgressBar:
    return ProgressBar(total=state.bar_total, completed=state.bar_done, width=width)


def _figures(state: ViewState, width: int) -> Table:
    entries = [(label, content) for label, content in _entries(state, width) if content.plain]
    num_columns = 2 if width >= TWO_COLUMNS else 1
    half = -(-len(entries) // num_columns)
    columns = [_column(entries[start : start + half], width // num_columns) for start in range(0, len(entries), half)]
    table = Table.grid()
    table.add_row(*columns)
    return table


def _column(entries: Sequence[tuple[str, Text]], width: int) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=_LABEL_WIDTH, style="dim")
    table.add_column(width=width - _LABEL_WIDTH - 2)
    for entry in entries:
        table.add_row(*entry)
    return table


def _entries(state: ViewState, width: int) -> list[tuple[str, Text]]:
    """Label and content of each line of figures; an empty content is not shown."""
    row, held_out = state.row, _held_out(state)
    if not row:
        return [("held out", held_out)]
    mean, std = fixed(row.get("reward_mean")), fixed(row.get("reward_std"))
    reward = Text.assemble((mean, "bold green"), f" ± {std}  ")
    spark = sparkline(list(state.rewards), min(MAX_SPARK, width - _LABEL_WIDTH - 20))
    reward.append(spark, style="green")
    length = f"{number(row.get('response_tokens_mean'))} tokens, longest {number(row.get('response_tokens_max'), 9)}"
    speed = f"rollout {number(row.get('rollout_tokens_per_s'))}, learner {number(row.get('learner_tokens_per_s'))}"
    policy = f"KL to sampler {number(row.get('kl_to_sampler'), 2)}, age {number(row.get('policy_age_mean'), 2)}"
    accuracy = f"{percent(row.get('accuracy'))} of the batch" if row.get("accuracy") is not None else ""
    return [
        ("reward", reward),
        ("accuracy", Text(accuracy)),
        ("held out", held_out),
        ("length", Text(f"{length}, {percent(row.get('truncated_fraction'))} cut off")),
        ("tokens/s", Text(speed)),
        ("policy", Text(f"{policy}, {percent(row.get('flat_group_fraction'))} flat groups")),
        ("last step", _step_times(row)),
    ]


def _held_out(state: ViewState) -> Text:
    if not state.evaluations:
        return Text("")
    (_, first), (when, last) = state.evaluations[0], state.evaluations[-1]
    main, *others = last
    figures = [f"{main} {percent(last[main], 1)}", *(f"{name} {percent(last[name], 1)}" for name in others)]
    if len(state.evaluations) == 1:
        return Text(f"{', '.join(figures)} {when}")
    figures[0] = f"{main} {percent(first[main], 1)} → {percent(last[main], 1)} ({when})"
    return Text(", ".join(figures))


def _step_times(row: Mapping[str, Number]) -> Text:
    times = [(phase, row.get(f"{phase}_s") or 0.0) for phase in _PHASE_ORDER]
    parts = [f"{phase} {duration(seconds)}" for phase, seconds in times if seconds >= 0.05]
    return Text(_DOT.join([duration(row.get("step_s") or 0.0), *parts]).replace(" s", "\u00a0s"))


def render_start(config: RunConfig, machine_line: str) -> RenderableType:
    """The lines above the view."""
    return Group(
        Text.assemble(
            (f"rlvr train {one_line(config.recipe)}", "bold"),
            f"{_DOT}{one_line(config.model.name)}{_DOT}{config.max_steps} steps × {config.prompts_per_step} prompts × "
            f"{config.rollout.num_generations} completions",
        ),
        Text(one_line(machine_line), style="dim"),
    )


def render_example(
    step: int, prompt_text: str, completion_text: str, rewards: Mapping[str, float | None], width: int
) -> RenderableType:
    """One completion in a frame. Texts become `Text` objects: rich's markup in them stays what it is, text."""
    earned = _DOT.join(f"{one_line(name)} {DASH if value is None else f'{value:g}'}" for name, value in rewards.items())
    body = Group(
        Text(tail(_compact(prompt_text), max_chars=300, max_lines=3), style="dim", overflow="fold"),
        Text(head(_compact(completion_text), max_chars=800, max_lines=12), overflow="fold"),
        Text(earned, style="cyan"),
    )
    return Panel(body, title=f"step {step}", title_align="left", border_style="dim", width=min(width, MAX_EXAMPLE))


def _compact(text: str) -> str:
    """Sanitised, without runs of empty lines."""
    return re.sub(r"\n\s*\n\s*\n", "\n\n", sanitise(text).strip())


def render_outcome(outcome: Outcome) -> list[tuple[RenderableType, bool]]:
    """The final report as (what, whether it must not be wrapped, so that it can be copied)."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    for comparison in outcome.comparisons:
        gained = comparison.difference is not None and comparison.difference.low > 0
        table.add_row(
            comparison.name,
            Text.assemble(accuracies(comparison), "  ", (comparison.change, "bold green" if gained else "")),
        )
    if outcome.num_problems:
        table.add_row("", Text(f"{outcome.num_problems} held-out problems, 95 % interval in brackets", style="dim"))
    table.add_row("tokens", Text(outcome.tokens))
    parts = [f"{phase}\u00a0{percent(share)}" for phase, share in shares(dict(outcome.seconds), at_least=0.005)]
    table.add_row("time", Text(f"{duration(outcome.wall_s)}: {', '.join(parts)}".replace(" %", "\u00a0%")))
    lines: list[tuple[RenderableType, bool]] = [
        (Text(""), False),
        (Text(one_line(outcome.headline), style="bold"), False),
        (table, False),
        (Text.assemble(("run folder  ", "bold"), one_line(outcome.run_dir)), True),
    ]
    for purpose, command in outcome.next_commands:
        lines += [(Text(f"to {purpose}:", style="dim"), False), (Text(f"  {command}"), True)]
    return lines
