"""Rewards from other people's modules, loaded when the server's configuration names them; a request never does.

A target `module:name` is one of

- a `Reward` object, as every file beside this one has;
- a function with our signature, `score(completion, reference, params) -> RewardScore | float | None`; a class `Params`
  in its module, if it is a `RewardParams`, is the model of its parameters;
- a function with TRL's signature, `reward(completions, **columns) -> list[float | None]`. It is called with lists of
  one: `prompts`, `completions`, and a column for each key of the reference and of the metadata (the reference's where
  both have one), as far as it takes them. `log_extra` and `log_metric` are there and do nothing.

Which of these a function is shows in the names of its parameters; anything else is refused. So are async functions: a
worker scores one item after the other, and an event loop for each would gain nothing. None means that the reward does
not apply, and becomes null; so does a score outside of [low, high], as an error.

A function may say which keys of a reference it reads: its attribute `reference_keys` is a `ReferenceKeys`, or a
function of the parameters that gives one. Training then finds before it starts what a task does not give.

Each worker process loads the rewards itself, from the same specifications: functions never travel.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import cached_property
from importlib import metadata
from typing import Any, Final

from pydantic import Field, ValidationError, create_model

from reward_service.rewards.base import (
    InvalidReferenceError,
    NotScorableError,
    Reward,
    RewardParams,
    Task,
    definition_hash,
    first_paragraph,
)
from reward_service.settings import CustomRewardSpec
from reward_service.types import ReferenceKeys, RewardScore

ENTRY_POINT_GROUP: Final = "rlvr.rewards"

_OURS: Final = ("completion", "reference", "params")
_BY_NAME: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class CustomRewardError(ValueError):
    """A reward that cannot be loaded; the message names it and says why."""


class TrlParams(RewardParams):
    """Parameters of a reward with TRL's signature."""

    conversational: bool = Field(
        False, description="Prompts and completions are given as lists of one chat message, not as text."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CustomReward(Reward):
    """A reward made of a function: what it gives is checked."""

    spec: CustomRewardSpec
    call: Callable[[Task, Any], RewardScore]

    def apply(self, task: Task, params: RewardParams) -> RewardScore:
        """The function's score; NotScorableError for None, ValueError for what is no score in the reward's range."""
        return self.call(task, params)

    @cached_property
    def version(self) -> str:
        """Sha-256 of the module's definition, the function's name and the options."""
        module, _, name = self.spec.target.partition(":")
        options = json.dumps(self.spec.options, sort_keys=True, default=repr)
        return hashlib.sha256(f"{definition_hash(module)}\0{name}\0{options}".encode()).hexdigest()


def load_custom(specs: Iterable[CustomRewardSpec], *, taken: Iterable[str] = ()) -> dict[str, Reward]:
    """The rewards by name.

    Args:
        specs: Each names a target, `module:name`.
        taken: Names that they may not have.

    Raises:
        CustomRewardError: One cannot be loaded, or its name is taken or there twice.
    """
    rewards: dict[str, Reward] = {}
    names = set(taken)
    for spec in specs:
        if spec.name in names:
            raise CustomRewardError(f"there are two rewards {spec.name!r}; give {spec.target} another name")
        names.add(spec.name)
        rewards[spec.name] = load_spec(spec)
    return rewards


def entry_point_specs() -> tuple[CustomRewardSpec, ...]:
    """What installed packages offer in the group `rlvr.rewards`, by name; nothing is imported yet."""
    points = sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (point.name, point.value))
    try:
        return tuple(
            CustomRewardSpec(name=point.name, target=point.value.partition("[")[0].strip()) for point in points
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CustomRewardError(
            f"an entry point in {ENTRY_POINT_GROUP} has a bad {first['loc'][0]}: {first['input']!r:.100}"
        ) from None


def load_spec(spec: CustomRewardSpec) -> Reward:
    """Imports the target and makes a reward of it; CustomRewardError if that cannot be done."""
    module_name, _, attribute = spec.target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise CustomRewardError(f"reward {spec.name!r}: {module_name} cannot be imported: {error!r:.200}") from error
    target = getattr(module, attribute, None)
    if isinstance(target, Reward):
        return _renamed(target, spec)
    if not callable(target):
        raise CustomRewardError(f"reward {spec.name!r}: {module_name} has no function {attribute}")
    params, function = _adapted(target, module, spec)
    low, high = spec.low or 0.0, 1.0 if spec.high is None else spec.high

    def call(task: Task, params: Any) -> RewardScore:
        return _checked(function(task, params), spec.target, low, high)

    return CustomReward(
        name=spec.name,
        description=first_paragraph(inspect.getdoc(target)) or spec.target,
        low=low,
        high=high,
        params=_with_defaults(params, spec),
        score=lambda completion, reference, params: call(Task(completion, reference), params),
        deadline_s=spec.deadline_s,
        keys=_declared_keys(target, spec),
        preload=(module_name,),
        spec=spec,
        call=call,
    )


def _declared_keys(target: Any, spec: CustomRewardSpec) -> ReferenceKeys | Callable[[Any], ReferenceKeys] | None:
    """The function's attribute `reference_keys`, None if it has none: then its references are not checked."""
    keys = getattr(target, "reference_keys", None)
    if keys is None or isinstance(keys, ReferenceKeys) or callable(keys):
        return keys
    raise CustomRewardError(
        f"reward {spec.name!r}: {spec.target}.reference_keys is {keys!r:.100}, and neither a ReferenceKeys nor a"
        " function of the parameters that gives one"
    )


def _renamed(reward: Reward, spec: CustomRewardSpec) -> Reward:
    return dataclasses.replace(
        reward,
        name=spec.name,
        low=reward.low if spec.low is None else spec.low,
        high=reward.high if spec.high is None else spec.high,
        deadline_s=reward.deadline_s if spec.deadline_s is None else spec.deadline_s,
        params=_with_defaults(reward.params, spec),
    )


def _adapted(function: Any, module: Any, spec: CustomRewardSpec) -> tuple[type[RewardParams], Callable[..., Any]]:
    """The model of its parameters, and the function as one of (task, params)."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        raise CustomRewardError(
            f"reward {spec.name!r}: {spec.target} is async, and a worker calls plain functions, one item at a time"
        )
    parameters: Mapping[str, inspect.Parameter]
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = {}
    if tuple(parameters) == _OURS:
        model = getattr(module, "Params", RewardParams)
        model = model if isinstance(model, type) and issubclass(model, RewardParams) else RewardParams
        return model, lambda task, params: function(task.completion, task.reference, params)
    if "completions" in parameters and all(
        parameter.kind in (*_BY_NAME, inspect.Parameter.VAR_KEYWORD) for parameter in parameters.values()
    ):
        return TrlParams, lambda task, params: _call_trl(function, parameters, task, params)
    raise CustomRewardError(
        f"reward {spec.name!r}: {spec.target}({', '.join(parameters)}) takes neither (completion, reference, params) "
        "nor, as TRL's do, (completions, **columns)"
    )


def _call_trl(
    function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter], task: Task, params: TrlParams
) -> Any:
    arguments: dict[str, Any] = {key: [value] for key, value in {**task.metadata, **(task.reference or {})}.items()}
    arguments |= {"log_extra": _log_nothing, "log_metric": _log_nothing, "trainer_state": None}
    if params.conversational:
        arguments["prompts"] = [[{"role": "user", "content": task.prompt}]]
        arguments["completions"] = [[{"role": "assistant", "content": task.completion}]]
    else:
        arguments |= {"prompts": [task.prompt], "completions": [task.completion]}
    if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        arguments = {key: value for key, value in arguments.items() if key in parameters}
    for key, parameter in parameters.items():
        if parameter.kind in _BY_NAME and parameter.default is parameter.empty and key not in arguments:
            raise InvalidReferenceError(f"neither the reference nor the metadata have {key!r}")
    scores = list(function(**arguments))
    if len(scores) != 1:
        raise ValueError(f"{getattr(function, '__name__', function)} gave {len(scores)} scores for one completion")
    return scores[0]


def _checked(given: Any, target: str, low: float, high: float) -> RewardScore:
    result = given if isinstance(given, RewardScore) else RewardScore(score=_number(given))
    if result.score is None and result.reason is None:
        raise NotScorableError(f"{target} gave None: it does not apply to this item")
    if result.score is not None and not low <= result.score <= high:
        raise ValueError(
            f"{target} gave {result.score}, outside of [{low}, {high}]; "
            "state the range as low and high where the reward is configured"
        )
    return result


def _log_nothing(*_: Any, **__: Any) -> None:
    """A trainer would log here; a score has no place for it."""


def _number(given: Any) -> float | None:
    if given is None:
        return None
    try:
        return float(given)
    except (TypeError, ValueError):
        raise ValueError(f"the reward gave {given!r:.50}, which is not a number") from None


def _with_defaults(model: type[RewardParams], spec: CustomRewardSpec) -> type[RewardParams]:
    """`model` with the specification's options for defaults."""
    if not spec.options:
        return model
    fields = {field.alias or name: (name, field) for name, field in model.model_fields.items()}
    unknown = sorted(set(spec.options) - set(fields))
    if unknown:
        raise CustomRewardError(f"reward {spec.name!r} has no parameter {', '.join(unknown)}; it has {sorted(fields)}")
    changed: dict[str, Any] = {}
    for option, value in spec.options.items():
        name, field = fields[option]
        changed[name] = (field.annotation, copy(field))
        changed[name][1].default = value
    derived = create_model(model.__name__, __base__=model, __module__=model.__module__, **changed)
    try:
        derived.model_validate(spec.options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CustomRewardError(f"reward {spec.name!r}, options.{first['loc'][0]}: {first['msg']}") from None
    return derived
