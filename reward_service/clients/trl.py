"""Rewards of the service as TRL's reward functions, for GRPOTrainer and others with the same signature.

    from reward_service.clients.trl import RemoteReward, gsm8k_answer

    reward = RemoteReward(url, "gsm8k_correctness", reference={"final_answer": gsm8k_answer})
    trainer = GRPOTrainer(model, reward_funcs=[reward], train_dataset=openai_gsm8k, ...)

TRL need not be installed to import this, nor is it imported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reward_service.clients.blocking import BlockingRewardClient, ClientSettings
from reward_service.text.chat import Messages, transcript, written
from reward_service.types import ItemResult, RewardItem, RewardSpec

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
        reward: str,
        *,
        params: Mapping[str, Any] | None = None,
        weight: float = 1.0,
        reference: Mapping[str, Column] | None = None,
        name: str | None = None,
        run_id: str | None = None,
        api_key: str | None = None,
        ca_file: str | Path | None = None,
        timeout_s: float = 30.0,
        deadline_s: float = 300.0,
        max_concurrency: int = 16,
        max_items: int = 256,
    ) -> None:
        """A reward function for GRPOTrainer.

        Args:
            url: where the service is, `http://HOST:PORT`.
            reward: name of one of its rewards.
            params: the reward's parameters.
            weight: multiplies the score, what is logged included; GRPOConfig's `reward_weights` does not change that.
            reference: key of the reference → a column's name, or a function of the row. None: all columns.
            name: what TRL logs; None: the reward's.
            run_id: the training run, for the audit log.
            api_key: sent as a bearer token.
            ca_file: certificates (PEM) to trust, instead of the public ones.
            timeout_s: time of one try.
            deadline_s: time of a call with all its tries.
            max_concurrency: requests that are under way at once.
            max_items: most items of one request.

        Raises:
            ValueError: arguments that cannot work.
        """
        self.__name__ = name or reward
        self._spec = RewardSpec(name=reward, weight=weight, params=dict(params or {}))
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
            )
        )
        self._told: set[str] = set()

    def __repr__(self) -> str:
        return f"RemoteReward({self._client.settings!r}, {self._spec.name!r})"

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
        step = getattr(trainer_state, "global_step", None)
        rows = _rows(columns, len(completions))
        items = [
            RewardItem(
                id=str(index) if step is None else f"{step}/{index}",
                prompt="" if prompts is None else transcript(prompts[index]),
                completion=written(completion),
                reference=row if self._reference is None else _referenced(row, self._reference),
            )
            for index, (completion, row) in enumerate(zip(completions, rows, strict=True))
        ]
        results = self._client.score(items, [self._spec], self._run_id, step)
        unscored = self._tell(results)
        if log_metric is not None and items:
            log_metric(f"{self.__name__}/unscored", unscored / len(items))
        return [result.total for result in results]

    def _tell(self, results: Sequence[ItemResult]) -> int:
        """Logs the reasons that are new; gives how many have no score."""
        unscored = [score for result in results if (score := result.rewards[self._spec.name]).score is None]
        for score in unscored:
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
        return len(unscored)


def _rows(columns: Mapping[str, Any], num_rows: int) -> list[dict[str, Any]]:
    """Lists by column → one dictionary an item. What is no list belongs to no item and is passed over."""
    lists = {
        name: values
        for name, values in columns.items()
        if name not in _NOT_COLUMNS and isinstance(values, Sequence) and not isinstance(values, str)
    }
    for name, values in lists.items():
        if len(values) != num_rows:
            raise ValueError(f"column {name!r} has {len(values)} entries for {num_rows} completions")
    return [{name: values[index] for name, values in lists.items()} for index in range(num_rows)]


def _referenced(row: Row, reference: Mapping[str, Column]) -> dict[str, Any]:
    values = {}
    for key, column in reference.items():
        if callable(column):
            values[key] = column(row)
        elif column in row:
            values[key] = row[column]
        else:
            raise ValueError(
                f"reference: there is no column {column!r} for {key!r}; there are {', '.join(row) or 'none'}"
            )
    return values
