"""Rewards of the service as TRL's reward functions, for GRPOTrainer and others with the same signature.

    from reward_service.clients.trl import RemoteReward, gsm8k_answer

    reward = RemoteReward(url, "gsm8k_correctness", reference={"final_answer": "answer"}, columns=data.column_names)
    trainer = GRPOTrainer(model, reward_funcs=[reward], train_dataset=data, ...)

`AsyncRemoteReward` is the same for trainers that await their rewards together. A list of rewards is asked for in one
request, and their weighted sum is the score.

TRL need not be installed to import this, nor is it imported.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from reward_service.clients.blocking import BlockingRewardClient, ClientSettings
from reward_service.clients.checks import Rewards, ask_for_rewards, check_keys, check_names
from reward_service.text.chat import Messages, transcript, written
from reward_service.text.labels import FINAL_ANSWER, reference_of
from reward_service.types import ItemResult, RewardItem, RewardScore, RewardSpec

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
Column = str | Callable[[Row], Any]
"""The name of a column, or a function of an item's columns. A function of a module can be pickled, a lambda cannot."""

_NOT_COLUMNS = frozenset(
    {"completion_ids", "environments", "image", "images", "log_extra", "log_metric", "trainer_state"}
)
"""What TRL passes that is no reference: its own arguments, and the columns of pictures, which belong to the prompt."""


def gsm8k_answer(row: Row) -> str:
    """What follows the last `####` of the column `answer`, or all of it if it has none."""
    return str(row["answer"]).rpartition("####")[2].strip()


class RemoteReward:
    """A reward function of TRL that asks the service.

    When it is made the service is asked for its rewards, so that a name that is none, or a column that is not there, is
    an error before the first step; a service that does not answer then is asked again at the first call.

    Every column of the data set but TRL's own goes into the reference that a completion is compared with; `reference`
    chooses instead, from the reference's key to a column or a function of the row. A completion that cannot be scored
    has None, which TRL leaves out; why, is logged once a reason, and how many there are is TRL's metric
    `{name}/unscored`. A service that is down raises after `deadline_s`: a made-up 0 would be learned from.

    Threads may share it; it survives forks and pickling. Of chat messages the assistant's are scored (see
    `reward_service.text.chat.written`). The trainer's step goes along as policy version.
    """

    def __init__(
        self,
        url: str,
        reward: str | Sequence[str | RewardSpec],
        *,
        params: Mapping[str, Any] | None = None,
        weight: float = 1.0,
        reference: Mapping[str, Column] | None = None,
        columns: Sequence[str] | None = None,
        name: str | None = None,
        run_id: str | None = None,
        api_key: str | None = None,
        ca_file: str | Path | None = None,
        timeout_s: float = 30.0,
        deadline_s: float = 300.0,
        max_concurrency: int = 16,
        max_items: int = 256,
        use_proxy: bool = False,
    ) -> None:
        """A reward function for GRPOTrainer.

        Args:
            url: where the service is, `http://HOST:PORT`.
            reward: name of one of its rewards, or several, each with its weight and params if it is a `RewardSpec`: one
                request for all, whose weighted sum is the score, None if one is missing; TRL's metrics have the mean of
                each as `{name}/{reward}`.
            params: the parameters of the one reward.
            weight: multiplies the score, what is logged included; GRPOConfig's `reward_weights` does not change that.
            reference: key of the reference → a column's name, or a function of the row; under `final_answer` GSM8K's
                answer column gives its answer alone. None: all columns.
            columns: the data set's, to be checked at once rather than at the first call.
            name: what TRL logs; None: the reward's.
            run_id: the training run, for the audit log.
            api_key: sent as a bearer token.
            ca_file: certificates (PEM) to trust, instead of the public ones.
            timeout_s: time of one try.
            deadline_s: time of a call with all its tries.
            max_concurrency: requests that are under way at once.
            max_items: most items of one request.
            use_proxy: go through the proxies that the environment names, with the key, instead of straight.

        Raises:
            ValueError: arguments that cannot work, a reward that is not served, a column that is not there.
            RequestRefusedError: the service does not know the key.
            RewardServiceUnavailable: its certificate is not trusted.
        """
        self._specs = _specs(reward, weight, dict(params or {}))
        self.__name__ = name or "+".join(spec.name for spec in self._specs)
        self._reference, self._run_id = reference, run_id
        self._client = BlockingRewardClient(
            ClientSettings(
                url=url,
                api_key=api_key,
                ca_file=ca_file,
                timeout_s=timeout_s,
                deadline_s=deadline_s,
                max_concurrency=max_concurrency,
                max_items=max_items,
                use_proxy=use_proxy,
            )
        )
        self._told: set[str] = set()
        self._served: Rewards | None = None
        self._check(columns)

    def _check(self, columns: Collection[str] | None) -> None:
        """ValueError for what the service or the data set has not got; what is not known yet is let through."""
        if self._served is None and (served := ask_for_rewards(self._client.settings)) is not None:
            check_names(served, self._specs)
            self._served = served
        if columns is not None and self._reference is not None:
            for key, column in self._reference.items():
                if isinstance(column, str) and column not in columns:
                    raise ValueError(_no_column(column, key, columns))
        keys = columns if self._reference is None else self._reference
        if self._served is not None and keys is not None:
            check_keys(self._served, self._specs, keys, columns if columns is not None else ())

    def __repr__(self) -> str:
        return f"RemoteReward({self._client.settings!r}, {self.__name__!r})"

    def __call__(
        self,
        prompts: Sequence[str | Messages] | None = None,
        completions: Sequence[str | Messages] = (),
        *,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The weighted scores, one a completion. Raises ValueError for columns that do not fit, and what
        `RewardClient` raises."""
        step = _step(trainer_state)
        items = self._items(prompts, completions, step, columns)
        return self._said(self._client.score(items, self._specs, self._run_id, step), log_metric)

    def _items(
        self,
        prompts: Sequence[str | Messages] | None,
        completions: Sequence[str | Messages],
        step: int | None,
        columns: Mapping[str, Any],
    ) -> list[RewardItem]:
        rows = _rows(columns, len(completions))
        if rows:
            self._check(rows[0].keys())
        return [
            RewardItem(
                id=str(index) if step is None else f"{step}/{index}",
                prompt=transcript(prompt),
                completion=written(completion),
                reference=_with_its_answer(row) if self._reference is None else _referenced(row, self._reference),
            )
            for index, (prompt, completion, row) in enumerate(
                zip([None] * len(rows) if prompts is None else prompts, completions, rows, strict=True)
            )
        ]

    def _said(
        self, results: Sequence[ItemResult], log_metric: Callable[[str, float], None] | None
    ) -> list[float | None]:
        """The totals, with every reward in each: a part of one would be another scale."""
        unscored = self._tell(results)
        if log_metric is not None and results:
            log_metric(f"{self.__name__}/unscored", len(unscored) / len(results))
            for spec in self._specs if len(self._specs) > 1 else ():
                scores = [score for one in results if (score := one.rewards[spec.name].score) is not None]
                if scores:
                    log_metric(f"{self.__name__}/{spec.name}", sum(scores) / len(scores))
        return [None if index in unscored else result.total for index, result in enumerate(results)]

    def _tell(self, results: Sequence[ItemResult]) -> dict[int, RewardScore]:
        """Those without a full score; logs the reasons that are new."""
        unscored = {
            index: score
            for index, result in enumerate(results)
            for score in result.rewards.values()
            if score.score is None
        }
        for score in unscored.values():
            if score.reason is not None and score.reason not in self._told:
                self._told.add(score.reason)
                why = score.details.get("message", "no more is known")
                logger.warning(
                    "%s: %d of %d completions have no score; one of them: %s (%s)",
                    self.__name__,
                    len(unscored),
                    len(results),
                    score.reason,
                    why,
                )
        return unscored


class AsyncRemoteReward(RemoteReward):
    """The same, awaited: TRL runs such rewards together, and on one event loop. Any event loop will do."""

    async def __call__(  # type: ignore[override]  # that is what makes it another kind of function to TRL
        self,
        prompts: Sequence[str | Messages] | None = None,
        completions: Sequence[str | Messages] = (),
        *,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """As `RemoteReward`."""
        step = _step(trainer_state)
        items = self._items(prompts, completions, step, columns)
        future = self._client.submit(items, self._specs, self._run_id, step)
        results = await asyncio.wrap_future(future)
        return self._said(results, log_metric)


def _specs(reward: str | Sequence[str | RewardSpec], weight: float, params: dict[str, Any]) -> tuple[RewardSpec, ...]:
    if isinstance(reward, str):
        return (RewardSpec(name=reward, weight=weight, params=params),)
    if not reward or params or weight != 1.0:
        raise ValueError(
            f"reward={list(reward)!r:.200}: several rewards have their weights and params in RewardSpecs of their own,"
            " and there must be one at least"
        )
    return tuple(RewardSpec(name=one) if isinstance(one, str) else one for one in reward)


def _step(trainer_state: Any) -> int | None:
    step = getattr(trainer_state, "global_step", None)
    return None if step is None else int(step)


def _no_column(column: str, key: str, columns: Collection[str]) -> str:
    return f"reference: there is no column {column!r} for {key!r}; there are {', '.join(columns) or 'none'}"


def _rows(columns: Mapping[str, Any], num_rows: int) -> list[dict[str, Any]]:
    """Lists by column → one dictionary an item. What is no list belongs to no item and is passed over."""
    lists = {
        name: values
        for name, column in columns.items()
        if name not in _NOT_COLUMNS and isinstance(values := _list(column), Sequence) and not isinstance(values, str)
    }
    for name, values in lists.items():
        if len(values) != num_rows:
            raise ValueError(f"column {name!r} has {len(values)} entries for {num_rows} completions")
    return [{name: values[index] for name, values in lists.items()} for index in range(num_rows)]


def _list(column: Any) -> Any:
    """Arrays, tensors and pandas' columns as lists."""
    return column.tolist() if hasattr(column, "tolist") else column


def _referenced(row: Row, reference: Mapping[str, Column]) -> dict[str, Any]:
    values = {}
    for key, column in reference.items():
        try:
            values[key] = column(row) if callable(column) else row[column]
        except KeyError as error:
            raise ValueError(_no_column(str(error.args[0]), key, row.keys())) from None
    return _with_its_answer(values)


def _with_its_answer(reference: dict[str, Any]) -> dict[str, Any]:
    """With what the label under `final_answer` means."""
    if FINAL_ANSWER not in reference:
        return reference
    label = reference.pop(FINAL_ANSWER)
    return reference | reference_of(label)
