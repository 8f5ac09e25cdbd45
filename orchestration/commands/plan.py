"""`rlvr plan`: how a run would go on other machines, and predictions beside runs that were made."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.commands.arguments import add_json, add_words, positive, recipe_and_overrides
from orchestration.errors import ConfigError
from orchestration.plan.gpus import CPU, GPUS
from orchestration.settings.config import load_config

if TYPE_CHECKING:
    from orchestration.plan.check import Check
    from orchestration.plan.plan import Plan


def add_plan_command(commands: Any) -> None:
    """`plan`, as a subcommand of the whole command line."""
    plan = commands.add_parser(
        "plan",
        help="how a run would go on so many GPUs: the best split, steps an hour, memory, dollars",
        description="Simulate a run in virtual time, and say how its GPUs are divided best. Rates are stated ones of a "
        "GPU (a roofline), or measured ones of runs that were made, as are the lengths of completions.",
        epilog="Example: rlvr plan gsm8k-7b-p4d --nodes 4 --gpu a100-40. Predictions beside measurement: rlvr plan "
        "--measured RUN_DIR --check OTHER_RUN_DIR",
    )
    add_words(plan)
    plan.add_argument("--nodes", type=positive, default=1, help="how many")
    plan.add_argument("--gpus-per-node", type=positive, default=8, metavar="N", help="default: 8")
    plan.add_argument(
        "--gpu",
        choices=[*GPUS, CPU],
        help="default: a100-40, and with --measured the processor; rates that are measured are taken as those of this",
    )
    plan.add_argument("--price", type=_dollars, metavar="DOLLARS", help="of a node, an hour; default: AWS's list price")
    plan.add_argument(
        "--measured", action="append", default=[], type=Path, metavar="RUN_DIR", help="rates and lengths of this run"
    )
    plan.add_argument(
        "--check", action="append", default=[], type=Path, metavar="RUN_DIR", help="predict this run, and say the error"
    )
    plan.add_argument("--completion-tokens", type=positive, metavar="N", help="mean, where no run says it")
    plan.add_argument("--prompt-tokens", type=positive, metavar="N", help="where no run says it")
    add_json(plan)
    plan.set_defaults(run=_run)


def _dollars(text: str) -> float:
    try:
        dollars = float(text)
    except ValueError:
        dollars = -1.0
    if not 0 <= dollars < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a price: give dollars an hour, such as 21.96")
    return dollars


def _run(arguments: argparse.Namespace) -> int:
    gpu = arguments.gpu or (CPU if arguments.measured or arguments.check else "a100-40")
    if arguments.check:
        if arguments.words:
            raise ConfigError("--check predicts runs with the settings that they had: leave the recipe out")
        return _check(arguments, on_cpu=gpu == CPU)
    from orchestration.plan.plan import Machines, StatedTexts, make_plan
    from orchestration.plan.words import plan_in_words

    machines = Machines(nodes=arguments.nodes, gpus_per_node=arguments.gpus_per_node, gpu=gpu, price=arguments.price)
    if gpu == CPU and arguments.nodes > 1:
        raise ConfigError(f"--nodes {arguments.nodes} with --gpu cpu: a run without GPUs is planned for one node")
    plan = make_plan(
        load_config(*recipe_and_overrides(arguments.words)),
        machines,
        measured=arguments.measured,
        texts=StatedTexts(completion_tokens=arguments.completion_tokens, prompt_tokens=arguments.prompt_tokens),
    )
    width = shutil.get_terminal_size().columns
    print(json.dumps(plan_as_dict(plan), indent=2) if arguments.json else plan_in_words(plan, width=width))
    return 0


def _check(arguments: argparse.Namespace, *, on_cpu: bool) -> int:
    from orchestration.plan.check import check_runs
    from orchestration.plan.words import checks_in_words

    checks = check_runs(arguments.check, arguments.measured, on_cpu=on_cpu)
    as_json = json.dumps([_check_as_dict(check) for check in checks], indent=2)
    print(as_json if arguments.json else checks_in_words(checks))
    return 0 if all(check.holds for check in checks) else 1


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """As JSON has it."""
    price = plan.machines.price_source
    return {**dataclasses.asdict(plan), "steps_an_hour": plan.best.steps_an_hour, "price_source": price}


def _check_as_dict(check: Check) -> dict[str, Any]:
    return {**dataclasses.asdict(check), "error": check.error, "holds": check.holds}
