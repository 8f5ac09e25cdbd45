"""Rules by which completions are cut and judged here, without the reward service. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from orchestration.evals.answers import Ended
from rollout_server.types import Completion, FinishReason, SamplingParams

Decode = Callable[[Sequence[int]], str]

_INTEGER: Final = re.compile(r"-?\d+")
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")
_THOUSANDS: Final = re.compile(r"(?<=\d),(?=\d{3}\b)")


def own_part(whole: Completion, asked: SamplingParams, decode: Decode) -> tuple[str, int, Ended]:
    """What an evaluation with these stops and limit would have got of a completion that may have run on beyond them.

    Exact for greedy completions, whose beginnings do not depend on where they would have ended. Episodes are whole.

    Returns:
        Text (a stop string stays in it), tokens, and how it ended.
    """
    if whole.is_episode:
        return whole.text, whole.num_sampled, _ended(whole)
    ids = tuple(whole.token_ids[: asked.max_completion_length])
    stopped = next((at for at, token in enumerate(ids) if token in asked.stop_token_ids), None)
    ids = ids if stopped is None else ids[: stopped + 1]
    is_whole = len(ids) == len(whole.token_ids)
    text = whole.text if is_whole else decode(ids)
    found = [at + len(stop) for stop in asked.stop if (at := text.find(stop)) >= 0]
    if found:
        return text[: min(found)], len(ids), "stop"
    by_itself = stopped is not None or (is_whole and whole.finish_reason == FinishReason.STOP)
    return text, len(ids), "end" if by_itself else "length"


def _ended(episode: Completion) -> Ended:
    """A last turn that was cut off is a truncated answer, even where the environment took it as one."""
    if episode.finish_reason == FinishReason.STOP:
        return "length" if episode.turns[-1].finish_reason == FinishReason.LENGTH else "end"
    others: dict[FinishReason, Ended] = {FinishReason.TURNS: "turns", FinishReason.TIME: "time"}
    return others.get(episode.finish_reason, "failed" if episode.failure else "length")


def last_integer(text: str) -> int | None:
    """The last run of digits, with its sign; commas between thousands aside."""
    found = _INTEGER.findall(_THOUSANDS.sub("", text))
    return int(found[-1]) if found else None


def article_score(prompt: str, run_on: str, final_answer: str) -> float | None:
    """The AWS article's evaluation: the last integer of the whole decoded text, prompt included, is the answer.

    None where the answer is no integer, of which that evaluation has none.

    Args:
        prompt: As the model was asked, decoded.
        run_on: What it said, which is not cut at a stop string: the article's evaluation lets it run on.
        final_answer: Of the problem; thousands may be set apart by commas.
    """
    wanted = final_answer.replace(",", "")
    if not _INTEGER.fullmatch(wanted):
        return None
    return float(last_integer(f"{prompt}{run_on}") == int(wanted))


def vote(texts: Sequence[str]) -> int | None:
    """Which completion speaks for the majority (self-consistency, Wang et al. 2022): the first of those whose last
    number most of them have; of equally many, the number that came first. None: none has a number.

    >>> vote(["it is 7", "6", "so 6.0?", "6"])
    1

    Returns:
        An index into `texts`; None where none has a number.
    """
    numbers = [found[-1] if (found := _NUMBER.findall(_THOUSANDS.sub("", text))) else None for text in texts]
    votes = Counter(float(number) for number in numbers if number is not None)
    if not votes:
        return None
    winner, _ = max(votes.items(), key=lambda item: item[1])  # the first of several, as they came
    return next(at for at, number in enumerate(numbers) if number is not None and float(number) == winner)
