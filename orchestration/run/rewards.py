"""What a run asks of the reward service, and whether its task gives what that needs: found before anything starts."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestration.data.problems import Problems
from orchestration.errors import ConfigError, DataError, one_line
from orchestration.extras import is_found, make_importable
from orchestration.settings.config import RunConfig
from orchestration.types import Problem
from reward_service.commands import describe_rewards, find_lacks, read_settings, score_one
from reward_service.errors import ServiceError, ServiceStartError
from reward_service.settings import ServiceSettings
from reward_service.types import JUDGE, ItemResult, Reason, RewardItem, RewardSpec
from rollout_server.types import Completion

_OURS = {"host", "port", "keys_file", "ssl_certfile", "ssl_keyfile", "rewards"}


def service_settings(config: RunConfig, *, audit_log: Path | None = None) -> dict[str, Any]:
    """Settings for a service that the run starts: those of `settings_file`, and only the rewards that the run needs,
    so that it starts without loading the libraries of others.

    Modules beside the settings file can be imported from then on, by the service too; with rewards of the run's own
    settings also those of the current folder.

    Args:
        audit_log: where decisions are recorded, whatever database the settings file names.

    Raises ConfigError naming the file.
    """
    file = None if config.reward.settings_file is None else str(config.reward.settings_file)
    if file == "-":
        raise ConfigError("reward.settings_file='-' is not a file: a run does not read standard input")
    try:
        settings = read_settings(argparse.Namespace(settings=file, settings_words=()))
    except ServiceStartError as error:
        raise ConfigError(f"reward.settings_file={file!r}: {error}") from error
    if config.reward.settings_file is not None:  # rewards of one's own may lie beside it
        make_importable(config.reward.settings_file.parent)
    own = tuple(spec.model_dump() for spec in config.reward.custom_rewards)
    if own:
        make_importable(Path.cwd())
    judges = [spec for part in config.parts() for spec in config.judges_of(part).values()]
    names = dict.fromkeys(spec.name for spec in (*config.rewards, *judges, *config.data.asks()))
    given = settings.model_dump(exclude_unset=True, exclude=_OURS) | {"rewards": tuple(names)}
    if own:
        given["custom_rewards"] = (*given.get("custom_rewards", ()), *own)
    if audit_log is not None:
        given["audit"] = (given.get("audit") or {}) | {"database": str(audit_log.absolute())}
    return given


def own_modules(config: RunConfig) -> Iterator[str]:
    """The modules that tasks, tools, environments and rewards of the run come from, ours and installed ones too. Raises
    ConfigError. One that is not here is passed over where its task says what it lacks, or has other packages.

    A settings file that is not on this machine is passed over: what it names is where it is.
    """
    yield from (type(task).__module__ for task in (config.data, *config.data.parts().values()))
    yield from (module for module in config.data.named_modules() if is_found(module))
    file = config.reward.settings_file
    if config.reward.url is None and (file is None or file.is_file()):
        yield from (spec["target"].partition(":")[0] for spec in service_settings(config).get("custom_rewards", ()))


def reward_item(
    problem: Problem, *, prompt: str, completion: str, item_id: str = "", episode: Mapping[str, Any] | None = None
) -> RewardItem:
    """What the service is sent of a completion.

    Args:
        problem: Its reference and metadata go as they are; its id names the group.
        prompt: Text.
        completion: Text; of an episode the last turn's.
        item_id: By which the audit log calls it.
        episode: What it was (`episode_of`), in the metadata under that name; None: it was none.
    """
    return RewardItem(
        id=item_id,
        prompt=prompt,
        completion=completion,
        reference=problem.reference,
        metadata=problem.metadata if episode is None else {**problem.metadata, "episode": episode},
        group=problem.problem_id,
    )


def episode_of(completion: Completion) -> dict[str, Any]:
    """An episode as rewards see it: what each turn said, was answered and paid. `completion` is its last turn alone."""
    return {
        "rewards": [turn.reward for turn in completion.turns],
        "turns": [{"text": turn.text, "observation": turn.observation} for turn in completion.turns],
        "finish_reason": str(completion.finish_reason),
        "failure": completion.failure,
    }


def answer_of(row: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """What rewards are shown of a row of a run's table: the completion, and the episode that it was, if it was one.

    Args:
        row: With the columns `completion` and `turns`.
    """
    turns = row.get("turns") or []
    if not turns and row.get("failure") is None:
        return row["completion"], None
    return turns[-1]["text"] if turns else "", {
        "rewards": [turn["reward"] for turn in turns],
        "turns": [{"text": turn["text"], "observation": turn["observation"]} for turn in turns],
        "finish_reason": row["finish_reason"],
        "failure": row.get("failure"),
    }


_NO_TURNS: Mapping[str, Any] = {"rewards": [], "turns": [], "finish_reason": "stop", "failure": None}


def check_rewards(config: RunConfig, problems: Problems) -> None:
    """Make sure that the task gives what the run's rewards and judges read, and score one item of it in this process.

    For a service that runs already (`reward.url`) only the rewards are looked at that are known here too, and nothing
    is scored.

    Raises:
        ConfigError: there is no such reward, or its parameters do not fit.
        DataError: a problem lacks what a reward reads; names reward, key and task.
    """
    config.data.tool_schemas()  # a tool that cannot be had is said before a model is fetched
    try:
        given = service_settings(config) if config.reward.url is None else {}
        if config.reward.url is None and JUDGE in given["rewards"] and "judge" not in given:
            raise ConfigError(
                "the reward 'judge' needs an endpoint: write `judge: {base_url: URL, model: NAME}` into a file and "
                "name it with reward.settings_file=FILE"
            )
        settings = ServiceSettings.model_validate(given)
        known = None if config.reward.url is None else describe_rewards(settings)
        for part in config.parts():
            judges = tuple({spec.name: spec for spec in config.judges_of(part).values()}.values())
            for specs, asked in ((config.rewards_of(part), problems.train), (judges, problems.eval)):
                own = [problem for problem in asked if problem.part == part]
                _check(config, [spec for spec in specs if known is None or spec.name in known], own, settings)
    except ServiceStartError as error:
        raise ConfigError(str(error)) from error
    except ServiceError as error:
        raise ConfigError(f"reward.rewards: {error}") from error


def _check(
    config: RunConfig, specs: Sequence[RewardSpec], problems: Sequence[Problem], settings: ServiceSettings
) -> None:
    for problem in _one_of_each_form(problems):
        episode = _NO_TURNS if config.data.part(problem.part).has_turns() else None
        item = reward_item(problem, prompt=problem.text, completion="", episode=episode)
        lacks = find_lacks(specs, item, settings)
        if lacks:
            given = ", ".join(f'"{key}"' for key in problem.reference) or "nothing"
            raise DataError(
                f"the reward {lacks[0].reward!r} reads {lacks[0].key} of a reference, and the problem "
                f"{problem.problem_id} of the task {config.data.kind!r} gives {given}; choose another reward, or a "
                f"task that gives it"
            )
    for problem in problems:
        try:
            msgspec.json.encode((problem.reference, problem.metadata))
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"reference and metadata of the problem {problem.problem_id} of the task {config.data.kind!r} cannot "
                f"be sent as JSON: {one_line(error)}"
            ) from error
    if config.reward.url is None and specs:
        _score(config, specs, problems[0], settings)


def _score(config: RunConfig, specs: Sequence[RewardSpec], problem: Problem, settings: ServiceSettings) -> ItemResult:
    episode = _NO_TURNS if config.data.part(problem.part).has_turns() else None
    item = reward_item(problem, prompt=problem.text, completion=problem.solution, episode=episode)
    result = score_one(specs, item, settings)
    for name, scored in result.rewards.items():
        if scored.reason == Reason.INVALID_REFERENCE:
            why = scored.details.get("message", "its reference does not fit")
            raise DataError(
                f"the reward {name!r} cannot score the problem {problem.problem_id} of the task {config.data.kind!r}: "
                f"{why}; choose another reward, or mend the task's reference"
            )
    return result


def _one_of_each_form(problems: Iterable[Problem]) -> Iterable[Problem]:
    """The first problem of each set of keys: thousands of problems tend to share one."""
    firsts: dict[tuple[frozenset[str], frozenset[str]], Problem] = {}
    for problem in problems:
        firsts.setdefault((frozenset(problem.reference), frozenset(problem.metadata)), problem)
    return firsts.values()
