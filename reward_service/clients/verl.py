"""Rewards of the service as verl's custom reward function.

    custom_reward_function.path=pkg://reward_service.clients.verl   (or this file's path, or a file that imports it)
    custom_reward_function.name=compute_score        with any reward manager
                                compute_score_async  the same, awaited; not with `remote` or `prime`
                                compute_score_batch  with the manager `batch` of old versions
    +custom_reward_function.reward_kwargs.url=http://localhost:8300

What else `reward_kwargs` can say, or else environment variables of the workers, are the fields of `VerlSettings`, where
`url` is RLVR_REWARD_URL, `rewards` (as JSON) RLVR_REWARD_REWARDS, and so on. `make_compute_score` makes a function from
settings instead.

The answer is `{"score": total, REWARD: its score, …}`. Its keys are the same for every data source, as verl puts the
values of a batch side by side; a reward that is not asked for there is NaN. verl cannot take "no score": that raises
UnscorableError, unless `unscorable` names a number to stand for it.

Mind that verl's managers `prime` and `rate_limited` make a score of 0 of every error, a service that is down included;
so did old versions of `batch`.
verl need not be installed to import this, nor is it imported.
"""

from __future__ import annotations

from reward_service.clients.verl_scorer import (
    VerlScorer,
    VerlSettings,
    compute_score,
    compute_score_async,
    compute_score_batch,
    make_compute_score,
    read_settings,
)

__all__ = [
    "VerlScorer",
    "VerlSettings",
    "compute_score",
    "compute_score_async",
    "compute_score_batch",
    "make_compute_score",
    "read_settings",
]
