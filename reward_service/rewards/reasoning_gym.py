"""Between 0 and 1 by the verifier that the package reasoning-gym has for the item's data set, partial credit included.

The reference is an entry of one of its data sets: `dataset`, its name, and `entry`, the item as the package made it,
with `question`, `answer` and `metadata`. The package comes with the extra `reasoning-gym` and takes seconds to import:
a service whose setting `rewards` names this reward does so at its start, any other when it is first asked for it.

The answers are the answer lines and the boxes, or what `answer_in` says (see `reward_service.text.extraction`), and the
worst of them counts. Each is given to the verifier as it stands, and, if it scores less than 1 so, without the markup
around it. An answer that makes the verifier fail scores 0 if the entry's own answer does not make it fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from reward_service.rewards.base import AnswerParams, InvalidReferenceError, Reference, Reward, UnavailableError
from reward_service.text.extraction import read_answers, shown, undecorated
from reward_service.types import ReferenceKeys, RewardScore

Verifier = Callable[[str | None, Any], float]


class _Sequence(list[Any]):
    """A list that equals a tuple too: JSON made lists of the tuples in an entry, and verifiers compare with tuples."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        return super().__eq__(list(other) if isinstance(other, tuple) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other


def score(completion: str, reference: Reference, params: AnswerParams) -> RewardScore:
    """The verifier's score of the worst answer; `details["extracted"]` is the first answer, None if there is none."""
    dataset, entry = _entry(reference)
    verifier = _verifier(dataset)
    answers = read_answers(completion, params, params.answer_in, bare=False)
    if answers.why is not None:
        return RewardScore(score=0.0, details={"extracted": None, "why": answers.why})
    details = {"extracted": shown(answers.texts[0])}
    verdicts = [_verdict(verifier, text.strip(), entry, dataset) for text in answers.texts]
    worst = min(verdicts)
    if worst < 1.0:
        details["why"] = f"the verifier of {dataset} gives {worst:g} for {shown(answers.texts[verdicts.index(worst)])}"
    return RewardScore(score=worst, details=details)


def _entry(reference: Reference) -> tuple[str, Any]:
    dataset, entry = (reference or {}).get("dataset"), (reference or {}).get("entry")
    if not isinstance(dataset, str):
        raise InvalidReferenceError(f"dataset {dataset!r:.100} is not the name of a data set of reasoning-gym")
    if not isinstance(entry, Mapping) or "answer" not in entry:
        raise InvalidReferenceError(f"entry {entry!r:.100} is not an entry of {dataset:.100}, with question and answer")
    return dataset, _as_made(entry)


def _as_made(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_made(inner) for key, inner in value.items()}
    return _Sequence(map(_as_made, value)) if isinstance(value, list) else value


@lru_cache(maxsize=256)
def _verifier(dataset: str) -> Verifier:
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        told = f"the reward reasoning_gym needs {error.name}: install rlvr[reasoning-gym] where the service runs"
        raise UnavailableError(told) from None
    try:
        verifier: Verifier = reasoning_gym.get_score_answer_fn(dataset)
    except (ValueError, AssertionError, TypeError) as error:
        told = f"reasoning-gym has no verifier for dataset {dataset!r:.100}: {error!s:.100}"
        raise InvalidReferenceError(told) from None
    return verifier


def _verdict(verifier: Verifier, answer: str, entry: Any, dataset: str) -> float:
    verdict = 0.0
    for text in dict.fromkeys((answer, undecorated(answer))):
        try:
            found = float(verifier(text, entry))
        except (MemoryError, RecursionError):
            raise  # not known, which is not wrong
        except Exception:
            _check_entry(verifier, entry, dataset)
            continue
        if not 0.0 <= found <= 1.0:
            raise ValueError(f"the verifier of {dataset} gives {found}, outside of [0, 1]")
        if (verdict := max(verdict, found)) == 1.0:
            break
    return verdict


def _check_entry(verifier: Verifier, entry: Any, dataset: str) -> None:
    """InvalidReferenceError if the verifier fails with the entry's own answer too."""
    try:
        verifier(entry["answer"], entry)
    except Exception as error:
        told = f"the verifier of {dataset} fails with the entry's own answer: {type(error).__name__}: {error!s:.100}"
        raise InvalidReferenceError(told) from None


REWARD = Reward(
    name="reasoning_gym",
    params=AnswerParams,
    score=score,
    keys=ReferenceKeys(required=("dataset", "entry")),
    on_demand=("reasoning_gym",),
)
