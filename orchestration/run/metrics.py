"""What a step and a run say of themselves: the row of `metrics.jsonl`, and where the wall time went."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType

from learner.types import UPDATE_METRICS, ScoredCompletion, ScoredGroup, UpdateMetrics
from reward_service.types import JUDGE
from rollout_server.types import Completion

Number = float | int | None

OVERRULED = "overruled"
"""The reason beside a judge's score that did not count, as the verifier said otherwise."""

PHASES = ("learning", "publishing", "evaluation", "generation", "scoring")
"""In order of precedence: see `PhaseClock`."""
OTHER = "other"

METRICS: Mapping[str, str] = {
    "step": "Number of the optimizer step, from 1.",
    "policy_version": "Version of the policy that the update started from: updates before it, as the learner counts.",
    "reward_mean": "Mean of the totals (weighted sums of the rewards) over the scored completions.",
    "reward_std": "Standard deviation of those totals over the whole batch (divided by n).",
    "reward_group_std": "Mean over groups of the standard deviation of their totals: what there is to learn from.",
    "accuracy": "Share of completions to which the task's strict judge, where it is one of the run's rewards, gives 1; "
    "null where it is none.",
    "accuracy_{part}": "The same of one task of a mixture.",
    "reward_{name}_mean": "Mean of one reward, unweighted, over the completions it scored.",
    "reward_{name}_std": "Standard deviation of one reward over the completions it scored (divided by n).",
    "judge_overruled": "Share of the completions scored by both in which reward.verifier had to decide against the "
    "judge; null without a verifier.",
    "num_groups": "Groups (prompts) in the batch.",
    "num_completions": "Completions in the batch.",
    "num_unscored": "Completions without a total: left out of their groups, not counted as 0.",
    "flat_group_fraction": "Share of groups whose scored totals are all equal: they teach nothing.",
    "dropped_flat_groups": "Flat groups thrown away and replaced before this batch was full.",
    "dropped_problems": "Training problems that the curriculum leaves out now.",
    "response_tokens_mean": "Mean completion length, tokens.",
    "response_tokens_max": "Longest completion, tokens.",
    "turns_mean": "Mean number of an episode's turns; null without episodes.",
    "given_tokens_mean": "Mean number of an episode's tokens that its environment gave, its prompt apart.",
    "failed_episodes": "Episodes whose environment failed: among those without a total.",
    "retokenised_tokens": "Sampled tokens of episodes that are not those the engine gave: 0, or something is wrong.",
    "forks_mean": "Mean number of times that an episode's history was rewritten, and it went on as a sequence more.",
    "prefix_cache_hit_share": "Of the tokens of earlier turns that a prefix cache can have had, the share it had.",
    "truncated_fraction": "Share of completions that a limit ended: of tokens, or of an episode's turns or time.",
    "policy_age_mean": "Mean of policy_version minus the version a completion was sampled from; 0 is on-policy.",
    "policy_age_max": "The oldest completion's age, versions.",
    "groups_age_{age}": "Groups whose oldest completion is of that age, from 0 to policy_age_max.",
    "generated_tokens": "Completion tokens sampled since the previous step, thrown-away groups included.",
    "rollout_tokens_per_s": "generated_tokens per second in which anything was being generated.",
    "learner_tokens_per_s": "num_tokens per second of the learner's update.",
    "num_tokens": "Prompt and completion tokens of the batch, each sequence counted whole.",
    "num_distinct_tokens": "Tokens that really went through the model: shared prefixes once.",
    "publish_ms": "From the end of the update to the new adapter being served by every worker, milliseconds.",
    "publish_bytes": "Size of the published adapter's files, bytes.",
    "probe_difference": "Largest difference between served and trained log-probabilities after publishing, nats.",
    "alarms": "Alarms that hold: rewards that may lie, training that goes wrong; what they are is in the log.",
    "step_s": "Wall time of the step, seconds.",
    "{phase}_s": "Wall time of the step that the phase is answerable for (see PhaseClock), seconds; the phases are "
    f"{', '.join((*PHASES, OTHER))}.",
    "{phase}_busy_s": "Time in which the phase was under way, seconds; these overlap when phases do.",
    **UPDATE_METRICS,
}
"""Every name of a row and its meaning; `{name}` is a reward's name, `{part}` a task's of a mixture, `{phase}` a
phase's, `{of}` mean, min or max, `{age}` a
number of versions. The learner's own figures are among them as it gives them."""

AGE_PREFIX = "groups_age_"

_ALWAYS_THERE = ("kl_to_sampler", "clip_fraction")
"""Of the learner's figures those that reports show: null where its loss has them not."""


def step_row(
    groups: Sequence[ScoredGroup],
    update: UpdateMetrics,
    reward_names: Sequence[str],
    phase_seconds: Mapping[str, float],
    *,
    strict_rewards: Mapping[str, str] = MappingProxyType({}),
    verifier: str | None = None,
    generated_tokens: int,
    step_seconds: float,
    dropped_flat_groups: int = 0,
    dropped_problems: int = 0,
    publish_ms: float | None = None,
    publish_bytes: int | None = None,
    probe_difference: float | None = None,
    alarms: int = 0,
    busy_seconds: Mapping[str, float] | None = None,
) -> dict[str, Number]:
    """The row of one step; `METRICS` says what each name means.

    Args:
        groups: what the step learned from, at least one group.
        update: what the learner says of it.
        reward_names: the run's rewards, in the order of each completion's `rewards`.
        phase_seconds: what `PhaseClock.seconds` grew by.
        strict_rewards: which reward decides whether an answer is right, by the task of a mixture, a group's category;
            of a task that is one under the empty name.
        verifier: the reward that decides against the judge.
        busy_seconds: what `PhaseClock.busy_seconds` grew by. Without it the rate of generation is taken over its
            share of `phase_seconds`, which is right only when generation never runs beside learning.

    Raises:
        ValueError: Two figures have one name.
    """
    members = [member for group in groups for member in group.members]
    policy_version = update.step - 1
    generation_s = (phase_seconds if busy_seconds is None else busy_seconds).get("generation", 0.0)
    row: dict[str, Number] = {
        "step": update.step,
        "policy_version": policy_version,
        **_reward_figures(groups, members, reward_names),
        **_accuracies(groups, reward_names, strict_rewards),
        "judge_overruled": None if verifier is None else _overruled(members, reward_names, verifier),
        "num_groups": len(groups),
        "num_completions": len(members),
        "num_unscored": sum(member.total is None for member in members),
        "flat_group_fraction": _mean([group.flat for group in groups]),
        "dropped_flat_groups": dropped_flat_groups,
        "dropped_problems": dropped_problems,
        **_lengths_and_ages(members, policy_version),
        **_groups_by_age(groups, policy_version),
        "generated_tokens": generated_tokens,
        "rollout_tokens_per_s": _rate(generated_tokens, generation_s),
        "learner_tokens_per_s": update.tokens_per_s,
        "num_tokens": update.num_tokens,
        "num_distinct_tokens": update.num_distinct_tokens,
        "publish_ms": publish_ms,
        "publish_bytes": publish_bytes,
        "probe_difference": probe_difference,
        "alarms": alarms,
        "step_s": step_seconds,
        **{f"{phase}_s": seconds for phase, seconds in phase_seconds.items()},
        **{f"{phase}_busy_s": seconds for phase, seconds in (busy_seconds or {}).items()},
    }
    if twice := sorted(row.keys() & update.values.keys()):
        raise ValueError(
            f"the learner and the run both have metrics of the names {', '.join(twice)}: rename the learner's"
        )
    return {**row, **dict.fromkeys(_ALWAYS_THERE), **update.values}


def _lengths_and_ages(members: Sequence[ScoredCompletion], policy_version: int) -> dict[str, Number]:
    lengths = [member.completion.num_sampled for member in members]
    ages = [policy_version - member.completion.adapter_version for member in members]
    return {
        "response_tokens_mean": _mean(lengths),
        "response_tokens_max": max(lengths),
        **_episode_figures([member.completion for member in members if member.completion.is_episode]),
        "truncated_fraction": _mean([member.truncated for member in members]),
        "policy_age_mean": _mean(ages),
        "policy_age_max": max(ages),
    }


def _reward_figures(
    groups: Sequence[ScoredGroup], members: Sequence[ScoredCompletion], reward_names: Sequence[str]
) -> dict[str, Number]:
    totals = [member.total for member in members if member.total is not None]
    group_stds = [
        std
        for group in groups
        if (std := _std([member.total for member in group.members if member.total is not None])) is not None
    ]
    figures: dict[str, Number] = {
        "reward_mean": _mean(totals),
        "reward_std": _std(totals),
        "reward_group_std": _mean(group_stds),
    }
    rewards_by_name = zip(*(member.rewards for member in members), strict=True)  # one column a reward
    for name, column in zip(reward_names, rewards_by_name, strict=True):
        scored = [reward for reward in column if reward is not None]
        figures[f"reward_{name}_mean"] = _mean(scored)
        figures[f"reward_{name}_std"] = _std(scored)
    return figures


def _accuracies(
    groups: Sequence[ScoredGroup], reward_names: Sequence[str], strict_rewards: Mapping[str, str]
) -> dict[str, Number]:
    """Of all together, and of each task of a mixture; null where what decides is none of the rewards."""
    right: dict[str, list[bool]] = {part: [] for part in strict_rewards}
    for group in groups:
        part = group.category if group.category in strict_rewards else ""
        if (name := strict_rewards.get(part)) in reward_names:
            scored = (member.rewards[reward_names.index(name)] for member in group.members)
            right[part] += [reward >= 1 for reward in scored if reward is not None]
    parts = {f"accuracy_{part}": _mean(of) for part, of in right.items() if part}
    return {"accuracy": _mean([one for of in right.values() for one in of]), **parts}


def differ(judged: float, verified: float) -> bool:
    """Whether a judge (right from 0.5 on) and a verifier (right at 1) say different things."""
    return (judged >= 0.5) != (verified >= 1)


def _overruled(members: Sequence[ScoredCompletion], reward_names: Sequence[str], verifier: str) -> float | None:
    judge, decides = reward_names.index(JUDGE), reward_names.index(verifier)
    pairs = [(member.rewards[judge], member.rewards[decides]) for member in members]
    return _mean(
        [differ(judged, verified) for judged, verified in pairs if judged is not None and verified is not None]
    )


def pass_rate(group: ScoredGroup, strict: int | None, best_total: float) -> float | None:
    """The share of a group's completions that are right; None where none was scored.

    Args:
        strict: the place among the rewards of the one that decides; None: right is what earned `best_total`.
    """
    earned = [member.total if strict is None else member.rewards[strict] for member in group.members]
    return _mean([reward >= (best_total if strict is None else 1) for reward in earned if reward is not None])


def _groups_by_age(groups: Sequence[ScoredGroup], policy_version: int) -> dict[str, Number]:
    oldest = [max(policy_version - member.completion.adapter_version for member in group.members) for group in groups]
    return {f"{AGE_PREFIX}{age}": oldest.count(age) for age in range(max(*oldest, 0) + 1)}


def _episode_figures(episodes: Sequence[Completion]) -> dict[str, Number]:
    return {
        "turns_mean": _mean([len(episode.turns) for episode in episodes]),
        "given_tokens_mean": _mean([len(episode.token_ids) - episode.num_sampled for episode in episodes]),
        "failed_episodes": sum(episode.failure is not None for episode in episodes),
        "retokenised_tokens": sum(episode.num_retokenised for episode in episodes),
        "forks_mean": _mean([len(episode.forks) for episode in episodes]),
        "prefix_cache_hit_share": hit_share(episodes),
    }


def hit_share(episodes: Sequence[Completion]) -> float | None:
    """Of what later turns could find in a prefix cache, the share that they found, by the engine's own word."""
    turns = [turn for episode in episodes for turn in episode.turns]
    possible = sum(turn.num_cacheable for turn in turns)
    # What two episodes have in common is found too, where neither had it in a turn of its own: no more than possible.
    return sum(min(turn.num_cached, turn.num_cacheable) for turn in turns) / possible if possible else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _std(values: Sequence[float]) -> float | None:
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


@dataclass(slots=True)
class Block:
    """An open block of a phase."""

    later: str = ""
    later_s: float = 0.0

    def was_later(self, name: str, seconds: float) -> None:
        """The last seconds before its end belong to another phase, as somebody says who was there.

        Args:
            name: The other phase.
            seconds: More than the block was open is all of it.
        """
        self.later, self.later_s = name, seconds


class PhaseClock:
    """Splits wall time into phases, also when many tasks are in several phases at once.

    A run overlaps its phases on purpose: sixty groups generate while ten are scored and the learner works on the
    batch before. Adding up what each task took would count a second sixty times. So every moment is charged to
    exactly one phase: of those under way, the first in the order

        learning > publishing > evaluation > generation > scoring,

    and to `other` when none is; `seconds` adds up to the wall time. The order runs from what the loop waits for to
    what hides behind it: `scoring` is then the time that instant scoring would save, and generation behind learning
    is free. Evaluation stands before generation because it generates. `busy_seconds` gives each phase for itself.

    For one event loop: tasks may interleave as they like, threads may not share a clock.

        clock = PhaseClock()
        with clock.phase("generation"):
            completions_G = await generator.generate(prompt, sampling)
        clock.seconds()["generation"]
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._last = now()
        self._active = dict.fromkeys(PHASES, 0)
        self._changes: list[tuple[float, str, int]] = []
        """When, of which phase, and by how many blocks more or less."""
        self._seconds: dict[str, float] = dict.fromkeys((*PHASES, OTHER), 0.0)
        self._busy: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[Block]:
        """Be in a phase for the length of the block; any number of blocks may be open at once.

        Args:
            name: One of the clock's phases.

        Raises:
            ValueError: It is none of them.
        """
        if name not in self._active:
            raise ValueError(f"unknown phase {name!r}; phases are: {', '.join(PHASES)}")
        began, block = self._now(), Block()
        self._changes.append((began, name, 1))
        try:
            yield block
        finally:
            ended = self._now()
            left = max(began, ended - block.later_s)
            self._changes.append((left, name, -1))
            if block.later:
                self._changes += (left, block.later, 1), (ended, block.later, -1)

    def seconds(self) -> dict[str, float]:
        """Wall time since the clock was made, by phase and `other`, up to now."""
        self._advance()
        return dict(self._seconds)

    def busy_seconds(self) -> dict[str, float]:
        """By phase: time in which at least one block of it was open, up to now. Overlapping time counts in each."""
        self._advance()
        return dict(self._busy)

    def _advance(self) -> None:
        """Charge the time since the last look to those who were active during it. What is told later of a time before
        that look stays charged as it was."""
        for at, name, more in sorted(self._changes, key=itemgetter(0)):
            self._charge(at)
            self._active[name] += more
        self._changes.clear()
        self._charge(self._now())

    def _charge(self, until: float) -> None:
        elapsed = until - self._last
        if elapsed <= 0:
            return
        self._last = until
        active = [phase for phase in PHASES if self._active[phase]]
        for phase in active:
            self._busy[phase] += elapsed
        self._seconds[active[0] if active else OTHER] += elapsed
