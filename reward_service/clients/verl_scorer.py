"""The function that verl calls, and its settings. Here and not in `clients.verl`, which is what is handed to verl: that
executes the file it is given as a module that nobody can import, and then sends the function to Ray actors and to other
processes by pickle, which needs a module that they can import.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from reward_service.clients.blocking import BlockingRewardClient, ClientSettings
from reward_service.clients.errors import UnscorableError
from reward_service.text.labels import reference_of
from reward_service.types import ItemResult, RewardItem, RewardSpec

_VARIABLE_PREFIX = "RLVR_REWARD_"
_OF_VERL = frozenset({"reward_router_address", "reward_model_tokenizer"})
"""Arguments that verl's reward loop adds where it runs a reward model of its own."""
_ANY_SOURCE = "*"


class RewardChoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reward to ask for; its name alone stands for the rest by default."""

    name: str
    weight: float = 1.0
    params: dict[str, Any] = field(default_factory=dict)


class VerlSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to ask for, and where; the last seven are `RewardClient`'s."""

    url: str
    rewards: dict[str, Annotated[list[str | RewardChoice], Meta(min_length=1)]] = field(
        default_factory=lambda: {"openai/gsm8k": ["gsm8k_format", "gsm8k_correctness"]}
    )
    """By data source; "*" is any other."""
    unscorable: float | None = None
    """The score of what cannot be scored; None: an error."""
    label_key: str = "final_answer"
    """Key of the reference that holds the ground truth, unless that is a dictionary already."""
    prompt_key: str = "question"
    """Key of `extra_info` that holds the prompt's text, if there is one."""
    run_id: str | None = None
    api_key: str | None = None
    ca_file: str | None = None
    timeout_s: float = 30.0
    deadline_s: float = 300.0
    max_concurrency: int = 16
    batch_window_s: float = 0.002
    """verl's reward loop asks for one completion at a time, from many threads or coroutines at once."""
    use_proxy: bool = False


class Scores(dict[str, float]):
    """What verl is answered. Its manager `prime` takes numbers, or what has one at 0: there it finds the total."""

    def __missing__(self, key: object) -> float:
        if key == 0:
            return self["score"]
        raise KeyError(key)


class VerlScorer:
    """Scores as `settings` say. Threads may share it; it survives forks and pickling."""

    def __init__(self, settings: VerlSettings) -> None:
        """Raises ValueError for settings that cannot work."""
        self._settings = settings
        self._specs = {
            source: tuple(
                RewardSpec(name=choice)
                if isinstance(choice, str)
                else RewardSpec(name=choice.name, weight=choice.weight, params=choice.params)
                for choice in choices
            )
            for source, choices in settings.rewards.items()
        }
        self._names = tuple(dict.fromkeys(spec.name for specs in self._specs.values() for spec in specs))
        self._client = BlockingRewardClient(
            ClientSettings(
                url=settings.url,
                api_key=settings.api_key,
                ca_file=settings.ca_file,
                timeout_s=settings.timeout_s,
                deadline_s=settings.deadline_s,
                max_concurrency=settings.max_concurrency,
                batch_window_s=settings.batch_window_s,
                use_proxy=settings.use_proxy,
            )
        )

    def __call__(
        self, data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        """The scores of one completion."""
        return self.batch([data_source], [solution_str], [ground_truth], [extra_info])[0]

    def batch(
        self,
        data_sources: Sequence[str],
        solution_strs: Sequence[str],
        ground_truths: Sequence[Any],
        extra_infos: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[dict[str, float]]:
        """Scores many completions, of one data source or several.

        Args:
            data_sources: whose rewards of the settings apply, an entry each.
            solution_strs: the completions.
            ground_truths: the reference, or the value under the settings' `label_key` of it.
            extra_infos: verl's `extra_info`: the prompt's text under `prompt_key`, and `split` and `index` for the id.

        Returns:
            `score`, the weighted total, and each reward's score by name (nan where a source has not got it).

        Raises:
            UnscorableError: a completion has no score, and the setting `unscorable` names no number for that.
            ValueError: there are no rewards for a data source.
        """
        extras = [None] * len(solution_strs) if extra_infos is None else extra_infos
        indices: dict[str, list[int]] = {}
        items = []
        for index, (source, text, truth, extra) in enumerate(
            zip(data_sources, solution_strs, ground_truths, extras, strict=True)
        ):
            indices.setdefault(str(source), []).append(index)
            items.append(self._item(text, truth, extra, index))
        answers: dict[int, dict[str, float]] = {}
        for source, members in indices.items():
            results = self._client.score([items[i] for i in members], self._specs_of(source), self._settings.run_id)
            answers |= {i: self._answer(result, source) for i, result in zip(members, results, strict=True)}
        return [answers[index] for index in range(len(items))]

    async def scored(
        self, data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        """The scores of one completion, awaited; any event loop will do."""
        item = self._item(solution_str, ground_truth, extra_info, 0)
        future = self._client.submit([item], self._specs_of(data_source), self._settings.run_id)
        (result,) = await asyncio.wrap_future(future)
        return self._answer(result, data_source)

    def _specs_of(self, data_source: str) -> tuple[RewardSpec, ...]:
        specs = self._specs.get(data_source) or self._specs.get(_ANY_SOURCE)
        if specs is None:
            raise ValueError(
                f"rewards: there are none for the data source {str(data_source)!r:.100}, only for"
                f" {', '.join(sorted(self._specs))}; name some, or some for any other under {_ANY_SOURCE!r}"
            )
        return specs

    def _item(self, text: str, truth: Any, extra: Mapping[str, Any] | None, index: int) -> RewardItem:
        extra = extra or {}
        prompt = extra.get(self._settings.prompt_key)
        names = [str(extra[key]) for key in ("split", "index") if extra.get(key) is not None]
        return RewardItem(
            id="/".join(names) or str(index),
            prompt=prompt if isinstance(prompt, str) else "",
            completion=text,
            reference=reference_of(truth, self._settings.label_key),
        )

    def _answer(self, result: ItemResult, data_source: str) -> dict[str, float]:
        """A total counts only if every reward is in it: a part of it would be another scale."""
        scores = {name: reward.score for name, reward in result.rewards.items()}
        total = result.total
        if total is None or None in scores.values():
            if self._settings.unscorable is None:
                name, reward = next((n, r) for n, r in result.rewards.items() if r.score is None)
                raise UnscorableError(
                    f"a completion of {data_source} has no score for {name}: {reward.reason}"
                    f" ({reward.details.get('message', 'no more is known')}); verl cannot take that, so either mend it"
                    " or name a number for it by the setting `unscorable`"
                )
            total = self._settings.unscorable
        by_name = {name: scores.get(name) for name in self._names}
        return Scores(score=total, **{name: math.nan if score is None else score for name, score in by_name.items()})


def make_compute_score(url: str, **settings: Any) -> VerlScorer:
    """verl's `compute_score` with settings of its own, the other fields of `VerlSettings`:

    make_compute_score(url, rewards={"openai/gsm8k": ["gsm8k_correctness"], "*": [{"name": "math", "weight": 2.0}]})
    """
    return VerlScorer(read_settings({"url": url, **settings}, {}))


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **settings: Any
) -> dict[str, float]:
    """verl's interface, for the managers that ask for one completion at a time; blocks.

    Args:
        data_source: Names the data set, by which rewards are chosen.
        solution_str: The completion.
        ground_truth: The reference answer.
        extra_info: What else the data set has of the problem.
        settings: Fields of `VerlSettings` (verl's `reward_kwargs`); what is missing comes from the environment.

    Returns:
        `score`, the weighted total, and each reward's score by name.

    Raises:
        UnscorableError: It has no score, and the setting `unscorable` names no number for that.
        ValueError: A setting is missing or unknown, or the data source has no rewards.
    """
    return _scorer(settings)(data_source, solution_str, ground_truth, extra_info)


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None] | None = None,
    **settings: Any,
) -> list[dict[str, float]]:
    """For the manager `batch`.

    Args:
        data_sources: Each names the rewards of its item, as `VerlSettings.rewards` has them.
        solution_strs: The completions, decoded.
        ground_truths: The references.
        extra_infos: As verl's data set has them, or None.
        settings: verl's `reward_kwargs`: `VerlSettings` by name.

    Returns:
        For each completion `score` and the single rewards.

    Raises:
        UnscorableError: One has no score, and the setting `unscorable` names no number for that.
    """
    return _scorer(settings).batch(data_sources, solution_strs, ground_truths, extra_infos)


async def compute_score_async(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **settings: Any
) -> dict[str, float]:
    """For the reward loop."""
    return await _scorer(settings).scored(data_source, solution_str, ground_truth, extra_info)


def read_settings(settings: Mapping[str, Any], environment: Mapping[str, str]) -> VerlSettings:
    """The client's settings from both places where they may stand.

    Args:
        settings: From verl's configuration; these hold.
        environment: Variables of the names of the settings, in capitals behind a prefix; `rewards` as JSON.

    Raises:
        ValueError: Names what is missing, unknown, or does not fit.
    """
    values: dict[str, Any] = {}
    for name in VerlSettings.__struct_fields__:
        variable = _VARIABLE_PREFIX + name.upper()
        if name in settings:
            values[name] = _plain(settings[name])
        elif variable in environment:
            try:
                values[name] = (
                    msgspec.json.decode(environment[variable]) if name == "rewards" else environment[variable]
                )
            except msgspec.DecodeError as error:
                raise ValueError(f"{variable} is not JSON: {error}") from None
    if "url" not in values:
        raise ValueError(f"where is the reward service? Set reward_kwargs.url, or {_VARIABLE_PREFIX}URL")
    if unknown := sorted(set(settings) - set(VerlSettings.__struct_fields__) - _OF_VERL):
        raise ValueError(f"there is no setting {unknown[0]!r}; there are {', '.join(VerlSettings.__struct_fields__)}")
    try:
        return msgspec.convert(values, VerlSettings, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"settings of the reward service: {error}") from None


def _plain(value: Any) -> Any:
    """Dictionaries and lists, of what may be OmegaConf's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return value


_lock = threading.Lock()
_scorers: dict[bytes, VerlScorer] = {}


def _scorer(settings: Mapping[str, Any]) -> VerlScorer:
    """One for each distinct settings."""
    read = read_settings(settings, os.environ)
    key = msgspec.msgpack.encode(read)
    with _lock:
        if key not in _scorers:
            _scorers[key] = VerlScorer(read)
        return _scorers[key]


def _after_fork() -> None:
    global _lock  # noqa: PLW0603  # a fork has it as it happened to be
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
