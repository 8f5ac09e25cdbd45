"""1.0 if every answer in the completion is the reference's `final_answer`, character for character, else 0.0.

Before the comparison both sides lose the blanks around them (`strip`) and, if asked for, differences of case
(`ignore_case`), of runs of blanks (`collapse_blanks`) and of Unicode's compatibility forms (`nfkc`: full-width
digits become ASCII ones, ligatures letters; off, as it lets a text say what it does not look like). Nothing else is
forgiven: no markup, no full stop, no invisible character.

The answers are the answer lines, or what `answer_in` says (see `reward_service.text.extraction`), and all of them
must be right. `final_answer` is a text or a number, or a list of these of which any one will do.
"""

from __future__ import annotations

import unicodedata

from pydantic import Field

from reward_service.rewards.base import FINAL_ANSWER, AnswerParams, Reference, Reward, acceptable_answers
from reward_service.text.answers import AnswerPlace
from reward_service.text.extraction import read_answers, shown
from reward_service.types import ANSWER_PREFIX, RewardScore


class Params(AnswerParams):
    """Parameters of `exact`."""

    answer_in: AnswerPlace = Field("line", description=f"line: what follows `{ANSWER_PREFIX}`.")
    strip: bool = Field(True, description="Blanks around an answer do not matter.")
    ignore_case: bool = Field(False, description="Upper and lower case do not matter.")
    collapse_blanks: bool = Field(False, description="A run of blanks and line ends is one blank.")
    nfkc: bool = Field(False, description="Unicode's compatibility forms do not matter.")


def score(completion: str, reference: Reference, params: Params) -> RewardScore:
    """1.0 or 0.0; `details["extracted"]` is the first answer, None if there is none."""
    expected = {normalised(text, params) for text in acceptable_answers(reference)}
    answers = read_answers(completion, params, params.answer_in, bare=False)
    if answers.why is not None:
        return RewardScore(score=0.0, details={"extracted": None, "why": answers.why})
    details = {"extracted": shown(answers.texts[0])}
    for text in answers.texts:
        if normalised(text, params) not in expected:
            return RewardScore(score=0.0, details={**details, "why": f"an answer says {shown(text)}"})
    return RewardScore(score=1.0, details=details)


def normalised(text: str, params: Params) -> str:
    """`text` without the differences that do not matter."""
    if params.nfkc:
        text = unicodedata.normalize("NFKC", text)
    if params.ignore_case:
        text = text.casefold()
    if params.collapse_blanks:
        text = " ".join(text.split())
    return text.strip() if params.strip else text


REWARD = Reward(name="exact", params=Params, score=score, keys=FINAL_ANSWER)
