"""`rlvr bench …`: what can be measured, and its options."""

from __future__ import annotations

import argparse
from typing import Any

from orchestration.bench.gpu.command import add_arguments as add_gpu_arguments
from orchestration.bench.gpu.command import run as run_gpu_bench
from orchestration.commands.arguments import add_json, add_overrides, natural, positive
from orchestration.storage.cache import Progress


def add_bench_commands(commands: Any) -> None:
    """Adds `bench` and what can be measured."""
    bench = commands.add_parser("bench", help="measurements, as ratios within one run")
    names = bench.add_subparsers(required=True, metavar="NAME")
    for name, text in (
        ("rollout", "tokens per second: our workers over plain vLLM, with an adapter over without"),
        ("sync", "publishing an adapter: how long, how many bytes, whom it delays"),
    ):
        command = names.add_parser(name, help=text)
        add_json(command)
        add_overrides(command)
        command.set_defaults(run=_bench_run, name=name)
        _add_neighbours(command)
    flow = names.add_parser("flow", help="whole runs with staleness bounds of 0, 1, 2 and 4: time, ages, reward")
    add_json(flow)
    flow.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings, as for `rlvr train`; tiny unless named"
    )
    flow.set_defaults(run=_bench_flow)
    _add_bench_episodes(names)
    _add_bench_learner(names)
    _add_bench_monkey(names)
    _add_bench_driver(names)
    gpu = names.add_parser("gpu", help="all that needs a GPU, part by part, each a line of JSON; then tables")
    add_gpu_arguments(gpu)
    gpu.set_defaults(run=run_gpu_bench)
    reward = names.add_parser("reward", help="the reward service: items per second, latency, items that hang")
    add_json(reward)
    reward.add_argument("--seconds", type=positive, default=2, help="of one measurement (default: 2)")
    reward.add_argument("--rounds", type=positive, default=5, help="of the headline figures (default: 5)")
    reward.add_argument(
        "--sweep", action=argparse.BooleanOptionalAction, default=True, help="every batch size with 1, 8 and 64 clients"
    )
    reward.add_argument("--data-file", help="GSM8K's training file, for real items (default: generated ones)")
    reward.add_argument(
        "--processes", type=positive, metavar="N", help="instead: N processes beside one, one item a request"
    )
    reward.add_argument("--soak", type=positive, metavar="SECONDS", help="instead: load with items that misbehave")
    reward.set_defaults(run=_bench_reward)


def _add_bench_episodes(names: Any) -> None:
    episodes = names.add_parser("episodes", help="turns with an environment, beside the same tokens in one turn")
    add_json(episodes)
    episodes.add_argument("--episodes", type=positive, default=64, help="at once (default: 64)")
    episodes.add_argument("--turns", type=positive, default=4, help="of an episode (default: 4)")
    episodes.add_argument("--turn-length", type=positive, default=32, help="sampled tokens of a turn (default: 32)")
    episodes.add_argument(
        "--latency-ms", type=natural, default=500, help="what an environment takes at most, milliseconds (default: 500)"
    )
    episodes.add_argument("--rounds", type=positive, default=3, help="measured (default: 3)")
    add_overrides(episodes)
    episodes.set_defaults(run=_bench_episodes)


def _add_bench_monkey(names: Any) -> None:
    monkey = names.add_parser("monkey", help="a training whose processes are killed and stopped: nothing may be lost")
    add_json(monkey)
    monkey.add_argument("--seconds", type=positive, default=600, help="in all (default: 600)")
    monkey.add_argument("--every", type=positive, default=20, help="seconds between two faults (default: 20)")
    monkey.add_argument("--steps", type=positive, default=200, help="of each run (default: 200)")
    monkey.add_argument("--seed", type=natural, default=0, help="of the faults (default: 0)")
    monkey.set_defaults(run=_bench_monkey)


def _add_bench_driver(names: Any) -> None:
    driver = names.add_parser("driver", help="what the driver can carry, with stubs for engines and learner")
    add_json(driver)
    driver.add_argument("--num-workers", type=positive, default=512, help="rollout workers (default: 512)")
    driver.add_argument("--num-generations", type=positive, default=8, help="completions of a group (default: 8)")
    driver.add_argument(
        "--lengths", type=positive, nargs="+", default=[1000, 200], help="of completions, tokens (default: 1000 200)"
    )
    driver.add_argument(
        "--groups", type=positive, nargs="*", default=[64, 512, 8192], help="a step (default: 64 512 8192)"
    )
    driver.set_defaults(run=_bench_driver)


def _add_bench_learner(names: Any) -> None:
    learner = names.add_parser("learner", help="one optimizer step: the prefix tree, without it, and TRL's trainers")
    add_json(learner)
    learner.add_argument("--model", default="smollm2-135m-instruct", help="embedded model, local folder or hub id")
    learner.add_argument("--shots", type=natural, default=8, help="worked examples in the prompts (default: 8)")
    learner.add_argument("--num-prompts", type=positive, default=2, help="groups in the batch (default: 2)")
    learner.add_argument("--num-generations", type=positive, default=8, help="completions of a group (default: 8)")
    learner.add_argument("--completion-length", type=positive, default=100, help="the longest, tokens (default: 100)")
    learner.add_argument("--rounds", type=positive, help="measured steps of each (default: 5 on GPUs, 1 on CPUs)")
    learner.add_argument("--threads", type=positive, help="CPU threads of each (default: all cores)")
    learner.add_argument(
        "--max-tokens-per-microbatch",
        type=positive,
        help="our budget, distinct tokens (default: 4096 on CPUs, what free memory allows on GPUs)",
    )
    learner.add_argument(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="for all of them; TRL's default is on",
    )
    learner.add_argument("--data-file", help="GSM8K's training file, for real prompts (default: generated ones)")
    _add_neighbours(learner)
    learner.set_defaults(run=_bench_learner)


def _add_neighbours(command: argparse.ArgumentParser) -> None:
    command.add_argument("--neighbours", type=natural, default=0, metavar="N", help="measure beside N busy loops too")


def _bench_run(arguments: argparse.Namespace) -> int:
    from orchestration.bench import rollout, run_bench, sync

    def measure(progress: Progress) -> dict[str, Any]:
        if arguments.name == "sync":
            return sync.run(arguments.overrides, progress, neighbours=arguments.neighbours)
        return rollout.run(arguments.overrides, progress, neighbours=arguments.neighbours)

    return run_bench(arguments.name, measure, as_json=arguments.json)


def _bench_flow(arguments: argparse.Namespace) -> int:
    from orchestration.bench import run_bench
    from orchestration.bench.runs import flow

    return run_bench("flow", lambda progress: flow.run(arguments.overrides, progress), as_json=arguments.json)


def _bench_episodes(arguments: argparse.Namespace) -> int:
    from orchestration.bench import run_bench
    from orchestration.bench.runs import episodes

    given = vars(arguments)
    options = episodes.EpisodesBench(**{name: given[name] for name in episodes.EpisodesBench.__slots__})
    return run_bench(
        "episodes",
        lambda progress: episodes.run(options, arguments.overrides, progress),
        as_json=arguments.json,
    )


def _bench_learner(arguments: argparse.Namespace) -> int:
    from orchestration.bench import learner, run_bench

    given = vars(arguments)
    options = learner.LearnerBench(**{name: given[name] for name in learner.LearnerBench.__slots__})
    return run_bench("learner", lambda progress: learner.run(options, progress), as_json=arguments.json)


def _bench_driver(arguments: argparse.Namespace) -> int:
    from orchestration.bench import driver, run_bench

    options = driver.DriverBench(
        num_workers=arguments.num_workers,
        num_generations=arguments.num_generations,
        lengths=tuple(arguments.lengths),
        groups=tuple(arguments.groups),
    )
    return run_bench("driver", lambda progress: driver.run(options, progress), as_json=arguments.json)


def _bench_monkey(arguments: argparse.Namespace) -> int:
    from orchestration.bench import run_bench
    from orchestration.bench.runs import monkey

    def measure(progress: Progress) -> dict[str, Any]:
        plan = monkey.Plan(
            seconds=arguments.seconds, every_s=arguments.every, steps=arguments.steps, seed=arguments.seed
        )
        return monkey.run(plan, progress)

    return run_bench("monkey", measure, as_json=arguments.json)


def _bench_reward(arguments: argparse.Namespace) -> int:
    from orchestration.bench import reward, reward_processes, reward_soak, run_bench

    if arguments.soak is not None:
        return run_bench("soak", lambda progress: reward_soak.run(arguments.soak, progress), as_json=arguments.json)
    given = vars(arguments)
    options = reward.RewardBench(**{name: given[name] for name in reward.RewardBench.__slots__})
    if (number := arguments.processes) is not None:
        return run_bench(
            "processes", lambda progress: reward_processes.run(options, number, progress), as_json=arguments.json
        )
    return run_bench("reward", lambda progress: reward.run(options, progress), as_json=arguments.json)
