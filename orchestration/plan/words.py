"""Plans and checks for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from orchestration.machine.needs import GIB
from orchestration.plan.check import BOUND, Check
from orchestration.plan.gpus import CPU
from orchestration.plan.plan import Plan
from orchestration.plan.rates import Rates
from orchestration.plan.simulate import Outcome, Split

_WIDEST = 110
_SHOWN = 4


def plan_in_words(plan: Plan, *, width: int) -> str:
    """A plan as a few paragraphs and a table.

    Args:
        width: Of the terminal, characters.
    """
    head, *others = _head(plan)
    wrapped = [_wrapped(head, "", width), *(_wrapped(line, "  ", width) for line in others)]
    listed = {"Why": plan.why, "From": _sources(plan)}
    lists = [
        line
        for title, items in listed.items()
        for line in ("", title, *(_wrapped(one, "  - ", width) for one in items))
    ]
    return "\n".join([*wrapped, "", *_table(plan), *lists])


def _wrapped(text: str, begin: str, width: int) -> str:
    """Addresses are not broken."""
    follow = " " * max(len(begin), 2)
    return textwrap.fill(
        text,
        min(width, _WIDEST),
        initial_indent=begin,
        subsequent_indent=follow,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _head(plan: Plan) -> Iterator[str]:
    machines, best, split = plan.machines, plan.best, plan.best.split
    where = "one machine without GPUs"
    if machines.gpu != CPU:
        where = f"{_counted(machines.nodes, 'node')} of {machines.gpus_per_node} {machines.gpu}"
    yield f"{plan.recipe} on {where}: {split_in_words(split)}"
    yield (
        f"{best.steps_an_hour:.0f} steps/h ({best.step_s:.3g} s a step), "
        f"{best.generated_tokens / best.step_s:,.0f} tokens/s generated; engines at work {best.rollout_busy:.0%}, "
        f"learner {best.learner_busy:.0%}; completions {best.age:.1f} updates old"
    )
    if plan.memory.has:
        vllm = ", of which vLLM takes its share" if split.shared else ""
        yield (
            f"memory of a GPU, {_gib(plan.memory.has)}: rollout at least {_gib(plan.memory.rollout)}{vllm}, learner "
            f"{_gib(plan.memory.learner)}; of a node's processor, {_gib(plan.node_memory)}"
        )
    else:
        yield f"memory: {_gib(plan.node_memory)}"
    if plan.dollars_an_hour is not None:
        yield (
            f"${plan.dollars_an_hour:,.2f}/h, ${plan.dollars_an_hour / best.steps_an_hour * 1000:,.2f} for 1,000 "
            f"steps; the run: {plan.run_hours:.2g} h, ${plan.dollars_a_run or 0:,.2f}, without start and evaluations"
        )
    else:
        yield f"the run: {plan.run_hours:.2g} h, without start and evaluations"


def _table(plan: Plan) -> Iterator[str]:
    yield "  split            steps/h   engines   learner   step"
    rows = [("", plan.best), *(("", other) for other in plan.others[: _SHOWN - 1])]
    if plan.as_set is not None:
        rows.append((" (as set)", plan.as_set))
    for remark, one in rows:
        name = f"{one.split.workers} + {one.split.ranks}" + (" shared" if one.split.shared else "")
        yield (
            f"  {name:<15}{one.steps_an_hour:>9.0f}{one.rollout_busy:>10.0%}{one.learner_busy:>10.0%}"
            f"   {one.step_s:.3g} s{remark}"
        )


def _sources(plan: Plan) -> Iterator[str]:
    yield f"rates {plan.rates.source}"
    yield _rates_in_words(plan.rates)
    yield f"lengths {plan.lengths}"
    yield f"price {plan.machines.price_source}"


def _rates_in_words(rates: Rates) -> str:
    return (
        f"an engine step {1e3 * rates.step_s:.3g} ms and {1e6 * rates.sequence_s:.3g} µs a sequence (at least "
        f"{1e6 * rates.wide_sequence_s:.3g}), {rates.slots} at once, prefill {1e6 * rates.prefill_token_s:.3g} µs a "
        f"token; an update {rates.update_s:.3g} s and {1e6 * rates.token_s:.3g} µs a distinct token of a rank; a "
        f"publish {rates.publish_s:.3g} s"
    )


def split_in_words(split: Split) -> str:
    """Who has which processors."""
    workers, ranks = _counted(split.workers, "rollout worker"), _counted(split.ranks, "learner rank")
    if split.cpu:
        return f"{workers} and {ranks} on the processor"
    return f"{workers} and {ranks}" + (
        f" share {'a GPU' if split.workers == split.ranks == 1 else 'the GPUs'}"
        if split.shared
        else " with GPUs of their own"
    )


def checks_in_words(checks: Iterable[Check]) -> str:
    """Predicted beside measured, a line a figure."""
    return "\n".join(line for check in checks for line in _check(check))


def _check(check: Check) -> Iterator[str]:
    verdict = "within" if check.holds else "NOT within"
    yield f"{check.run}: a step {check.error:+.1%}, {verdict} {BOUND:.0%}"
    for name, measured in check.measured.items():
        predicted = _figure(check.predicted, name)
        error = f" ({predicted / measured - 1:+.1%})" if measured else ""
        yield f"  {name:<13} predicted {predicted:8.3f}   measured {measured:8.3f}{error}"


def _figure(outcome: Outcome, name: str) -> float:
    return float(getattr(outcome, name))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
