"""`rlvr doctor`: what this machine has, what a recipe needs, and what to do about each thing missing.

`rlvr train` asks the same questions before it starts an engine (`require_machine`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.errors import DataError, MachineError, RlvrError
from orchestration.machine.checks import Finding, Level, check, check_software, name_gpus
from orchestration.machine.facts import MachineFacts, collect
from orchestration.machine.model_sizes import hub_snapshots
from orchestration.machine.needs import Needs, needs_of
from orchestration.machine.placement import refuse_unseen_gpus
from orchestration.run.rewards import check_rewards
from orchestration.settings.config import RunConfig

if TYPE_CHECKING:
    from rich.console import Console


def run(config: RunConfig, *, as_json: bool = False) -> int:
    """Print everything found for `config`.

    Args:
        config: The run that is to fit this machine.
        as_json: Print one JSON object instead of a table.

    Returns:
        The exit status: 1 when something needed is missing.
    """
    facts, needs, findings = examine(config)
    findings += [*check_model(config), *check_data(config)]
    failed = any(finding.level is Level.MISSING for finding in findings)
    if as_json:
        report = {
            "recipe": config.recipe,
            "ok": not failed,
            "machine": dataclasses.asdict(facts),
            "needs": None if needs is None else dataclasses.asdict(needs),
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        print(json.dumps(report, indent=2))
    else:
        from rich.console import Console

        render(findings, Console(file=sys.stdout), recipe=config.recipe)
    return 1 if failed else 0


def require_machine(config: RunConfig) -> None:
    """Refuse a run this machine cannot hold, before anything is started.

    Raises:
        MachineError: one line: the first thing missing, and what to do.
    """
    _, _, findings = examine(config)
    missing = [finding for finding in findings if finding.level is Level.MISSING]
    if not missing:
        return
    first = missing[0]
    needed = f", needed: {first.needed}" if first.needed else ""
    more = f" ({len(missing) - 1} more: see `rlvr doctor`)" if len(missing) > 1 else ""
    raise MachineError(f"{first.what}: {first.here}{needed}; {first.remedy}{more}")


def examine(config: RunConfig) -> tuple[MachineFacts, Needs | None, list[Finding]]:
    """Read this machine and judge it; no `Needs` when there are too few GPUs to place the run."""
    facts = collect(shm=Path(config.rollout.adapter_dir), run_dir=Path(config.run_dir or "runs"))
    if config.ray_address is not None:
        elsewhere = Finding(
            level=Level.NOTE, what="cluster", here=config.ray_address, needed="its memory and GPUs are not looked at"
        )
        return facts, None, [*check_software(facts), elsewhere]
    try:
        refuse_unseen_gpus(config, num_gpus=len(facts.gpus), signs=facts.gpu_signs)
        needs = needs_of(config, num_gpus=len(facts.gpus))
    except MachineError as error:
        problem, _, remedy = str(error).partition(";")
        remedy = remedy.strip() or "change the settings it names"
        gpus = Finding(level=Level.MISSING, what="GPUs", here=name_gpus(facts.gpus), needed=problem, remedy=remedy)
        return facts, None, [*check_software(facts), gpus]
    return facts, needs, check(facts, needs)


def check_model(config: RunConfig) -> Iterator[Finding]:
    """Whether the model is here already, comes with a package, or will be fetched."""
    from orchestration.models.random_shapes import RANDOM_PREFIX, random_names, random_shape
    from orchestration.models.resolve import EMBEDDED_MODELS, check_trainable, embedded_model_ready

    name, folder = config.model.name, Path(config.model.name).expanduser()
    level, here, remedy = Level.OK, "embedded", ""
    if name in EMBEDDED_MODELS:
        if not embedded_model_ready(name):
            level, here, remedy = Level.MISSING, "its package is not installed", "`make setup` installs it into .venv"
    elif name.startswith(RANDOM_PREFIX):
        here = "random weights, made when needed"
        if random_shape(name) is None:
            level, here, remedy = Level.MISSING, "an unknown shape", f"take {' or '.join(random_names())}"
    elif folder.is_dir():
        try:
            check_trainable(folder)
            here = "a local folder"
        except DataError as error:
            level, here, remedy = Level.MISSING, str(error), "complete the folder"
    elif hub_snapshots(name):
        here = "in the hub's cache"
    elif name.count("/") == 1 and not folder.is_absolute():
        level, here, remedy = Level.NOTE, "not in the hub's cache", f"fetched when needed; now: rlvr model fetch {name}"
    else:
        level, here, remedy = Level.MISSING, "not there", f"give a folder, a hub id, or {' or '.join(EMBEDDED_MODELS)}"
    yield Finding(level=level, what="model", here=f"{name}: {here}", remedy=remedy)


def check_data(config: RunConfig) -> Iterator[Finding]:
    """Whether the recipe's problems can be read or made, and give what its rewards need."""
    try:
        problems = config.data.load()
        check_rewards(config, problems)
    except RlvrError as error:
        problem, _, remedy = str(error).partition(";")
        files = " and ".join(f"data.{name}" for name in config.data.files())
        remedy = remedy.strip() or (f"give existing files: {files}" if files else "change the settings it names")
        yield Finding(level=Level.MISSING, what="data", here=f"{config.data.kind}: {problem}", remedy=remedy)
        return
    here = f"{len(problems.train)} training and {len(problems.eval)} held-out problems"
    yield Finding(level=Level.OK, what="data", here=f"{config.data.kind}: {here}")


def render(findings: Sequence[Finding], console: Console, *, recipe: str) -> None:
    """The findings as a table, then what to do about those that ask for something."""
    from rich.markup import escape
    from rich.table import Table

    styles = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.MISSING: "bold red"}
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "here", f"{recipe} needs"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        level = f"[{styles[finding.level]}]{finding.level.value}[/]"
        table.add_row(level, escape(finding.what), escape(finding.here), escape(finding.needed))
    console.print(table)
    asking = [finding for finding in findings if finding.remedy]
    if asking:
        console.print("\nWhat to do")
        for finding in asking:
            console.print(f"  [{styles[finding.level]}]{escape(finding.what)}[/]: {escape(finding.remedy)}")
    failed = sum(finding.level is Level.MISSING for finding in findings)
    verdict = f"{failed} missing: {recipe} cannot run here yet" if failed else f"{recipe} can run here"
    console.print(f"\n[{'bold red' if failed else 'bold green'}]{escape(verdict)}[/]")
