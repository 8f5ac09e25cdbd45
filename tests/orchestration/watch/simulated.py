"""Runs made of random numbers: healthy ones of many kinds, and ones in which something goes wrong from a step on.

A process is a set of curves over steps; `facts` draws completions from them. What is healthy varies by seed: how good
the policy is at first and in the end, when and how fast it learns, whether form comes before answers, which words
become fashionable without being paid.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from orchestration.watch.facts import EvaluationFacts, Sample, StepFacts

Curve = Callable[[int], float]
STEPS, PROMPTS, GENERATIONS, HELD_OUT = 120, 8, 8, 100
BEGINS = 30
"""The step at which what goes wrong begins."""
CATEGORIES = ("add", "subtract", "words")
WORDS = ("so", "then", "first", "next", "have", "thus", "now", "total", "number", "each", "gives", "left", "together")


def curve(low: float, high: float, middle: float, width: float) -> Curve:
    """From `low` to `high` along a logistic curve around a step."""
    return lambda step: low + (high - low) / (1 + math.exp(min(60.0, -(step - middle) / width)))


@dataclass(frozen=True, kw_only=True)
class Process:
    """What is true at each step."""

    right: Curve
    """Chance that an answer is right (by the held-out judge too)."""
    form: Curve
    fashion: Mapping[str, Curve]
    length: Curve = lambda step: 80.0
    cut: Curve = lambda step: 0.05
    trick: str = ""
    """A word that is paid though the answer is wrong …"""
    tricked: Curve = lambda step: 0.0
    """… and the chance that a completion has it."""
    unscored: Curve = lambda step: 0.0
    same: Curve = lambda step: 0.0
    """Chance that a group's completions are all the same."""
    worse: Mapping[str, Curve] = field(default_factory=dict)
    """By category: what the chance to be right is multiplied by."""
    paid_shift: Curve = lambda step: 0.0
    """What the reward adds to everything: it broke."""
    weight: Curve = lambda step: 1.0
    gap: Curve = lambda step: 0.01
    grad_norm: Curve = lambda step: 1.0
    version: Callable[[int], str] = lambda step: "1"
    lenient_only: Curve = lambda step: 0.0
    """Chance that a wrong answer pleases the lenient rule."""


def healthy(seed: int) -> Process:
    """A run in which nothing is wrong."""
    rng = random.Random(seed)
    low = rng.uniform(0.0, 0.45)
    high = min(0.99, low + rng.uniform(0.1, 0.6))
    middle, width = rng.uniform(5, 80), rng.uniform(2, 20)
    form_middle = middle - rng.choice([0, 0, rng.uniform(0, 12)])
    fashion = {
        word: curve(rng.uniform(0, 0.5), rng.uniform(0, 1), rng.uniform(0, 120), rng.uniform(1, 30)) for word in WORDS
    }
    length = rng.uniform(40, 120)
    return Process(
        right=curve(low, high, middle, width),
        form=curve(min(low + 0.1, 0.95), rng.uniform(0.9, 1.0), form_middle, width),
        fashion=fashion,
        length=curve(length, length * rng.uniform(0.5, 1.6), rng.uniform(0, 120), 20),
        cut=curve(rng.uniform(0, 0.3), rng.uniform(0, 0.15), middle, width),
        gap=lambda step, rng=rng: rng.lognormvariate(math.log(0.005), 0.4),  # type: ignore[misc]
        weight=lambda step, rng=rng: rng.gauss(1, 0.05),  # type: ignore[misc]
        grad_norm=lambda step, rng=rng: rng.lognormvariate(0, 0.5),  # type: ignore[misc]
    )


def planted(steps: float) -> Mapping[str, tuple[str, Callable[[Process], Process]]]:
    """What goes wrong → the alarm that should say so, and how; it grows over so many steps, from `BEGINS` on."""
    grows = curve(0.0, 1.0, BEGINS + steps / 2, steps / 8)

    def stuck(process: Process) -> Process:
        start = process.right(0)
        return replace(process, right=lambda step: start, form=lambda step: 0.1)

    return {
        "a word is paid": (
            "one_shape",
            lambda p: replace(stuck(p), trick="therefore", tricked=lambda step: 0.02 + 0.95 * grows(step)),
        ),
        "a word is paid, the judge is fair": (
            "reward_not_accuracy",
            lambda p: replace(stuck(p), trick="therefore", tricked=lambda step: 0.02 + 0.95 * grows(step)),
        ),
        "form alone is learned": (
            "format_without_substance",
            lambda p: replace(stuck(p), form=lambda step: 0.1 + 0.85 * grows(step)),
        ),
        "the lenient rule alone is pleased": (
            "rules_apart",
            lambda p: replace(stuck(p), lenient_only=lambda step: 0.9 * grows(step)),
        ),
        "one answer to everything": ("collapse", lambda p: replace(stuck(p), same=grows)),
        "longer and longer": (
            "length",
            lambda p: replace(
                p, length=lambda step: 80 * (1 + 3 * grows(step)), cut=lambda step: 0.05 + 0.9 * grows(step)
            ),
        ),
        "sampler and learner apart": (
            "sampler_and_learner_apart",
            lambda p: replace(p, weight=lambda step: 1 - 0.8 * grows(step)),
        ),
        "a category gets worse": (
            "category_left_behind",
            lambda p: replace(
                p, right=lambda step: 0.4 + 0.5 * grows(step), worse={"words": lambda step: 1 - grows(step)}
            ),
        ),
        "the reward breaks": (
            "reward_broke",
            lambda p: replace(p, paid_shift=lambda step: grows(step) * (1 if p.right(step) < 0.5 else -1)),
        ),
        "scores cannot be had": ("reward_broke", lambda p: replace(p, unscored=lambda step: 0.9 * grows(step))),
        "another version of the reward": (
            "reward_broke",
            lambda p: replace(p, version=lambda step: "2" if grows(step) > 0.5 else "1"),
        ),
        "no gradient": (
            "nothing_learned",
            lambda p: replace(stuck(p), grad_norm=lambda step: 1.0 if grows(step) < 0.5 else 0.0),
        ),
    }


def facts(process: Process, seed: int, *, steps: int = STEPS) -> Iterator[StepFacts]:
    """The steps of a run by a process."""
    rng = random.Random(f"steps {seed}")
    for step in range(1, steps + 1):
        samples = tuple(sample for index in range(PROMPTS) for sample in _group(process, rng, step, index))
        figures = {
            "importance_sampling_weight_mean": process.weight(step),
            "probe_difference": process.gap(step),
            "grad_norm": process.grad_norm(step),
            "num_loss_tokens": 1000,
            "kl_to_sampler_k3": 0.001,
            "scoring_busy_s": 0.1,
        }
        yield StepFacts(
            step=step,
            samples=samples,
            correctness="right",
            figures=figures,
            reward_versions={"right": process.version(step)},
        )


def held_out(process: Process, seed: int, step: int) -> EvaluationFacts:
    """Greedy answers to the same problems: each is right once the policy is good enough for it."""
    rng = random.Random(f"held out {seed}")
    needed = [(rng.random(), rng.random()) for _ in range(HELD_OUT)]
    strict = [float(need < min(process.right(step), process.form(step) + 0.1)) for need, _ in needed]
    lenient = [
        max(right, float(luck < process.lenient_only(step))) for right, (_, luck) in zip(strict, needed, strict=True)
    ]
    return EvaluationFacts(step=step, scores={"strict": tuple(strict), "lenient": tuple(lenient)})


def _group(process: Process, rng: random.Random, step: int, index: int) -> Iterator[Sample]:
    category = CATEGORIES[index % len(CATEGORIES)]
    chance = process.right(step) * process.worse.get(category, lambda _: 1.0)(step)
    ease = rng.betavariate(1.5, 1.5) * 2  # problems differ
    is_same = rng.random() < process.same(step)
    first: Sample | None = None
    for number in range(GENERATIONS):
        if is_same and first is not None:
            yield replace(first, completion_id=f"{step}/{index}/{number}")
            continue
        first = _sample(process, rng, step, index, number, category, min(1.0, chance * ease))
        yield first


def _sample(
    process: Process, rng: random.Random, step: int, index: int, number: int, category: str, chance: float
) -> Sample:
    is_formed = rng.random() < process.form(step)
    is_right = rng.random() < chance
    words = [word for word, share in process.fashion.items() if rng.random() < share(step)]
    has_trick = bool(process.trick) and rng.random() < process.tricked(step)
    answer = f"#### {rng.randrange(1000)}" if is_formed else f"answer {rng.randrange(1000)}"
    text = " ".join([*words, *([process.trick] if has_trick else []), answer])
    paid = min(1.0, max(0.0, float(is_right or has_trick) + process.paid_shift(step)))
    is_unscored = rng.random() < process.unscored(step)
    rewards = {"right": None if is_unscored else paid, "form": float(is_formed)}
    return Sample(
        completion_id=f"{step}/{index}/{number}",
        group=f"{step}/{index}",
        text=text,
        rewards=rewards,
        total=None if is_unscored else paid + 0.2 * is_formed,
        num_tokens=max(1, int(rng.gauss(process.length(step), 10))),
        truncated=rng.random() < process.cut(step),
        category=category,
        prompt="a question",
    )
