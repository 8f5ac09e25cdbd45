"""lm-eval as it is on PyPI: what its task `gsm8k` says of completions, what `rlvr eval --lm-eval-compatible` says, and
where our own judges say something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestration.evals import lm_eval
from reward_service.rewards import last_number
from reward_service.rewards.gsm8k import correctness
from tests.reward_service.clients.callers.installed import installed, run_script

LM_EVAL = ("lm-eval==0.4.13", "colorama==0.4.6", "lxml==6.1.3", "portalocker==4.4.2", "sacrebleu==2.6.0")
ARTICLE, OWN = "#### The final answer is", "####"
ANSWERS = ("72", "5", "-5", "1,234", "0", "18", "2125", "0.5", "100000", "7")
NEXT = "\n\nQuestion: How many apples are left?\nAnswer: 10 - 1 = 9\n#### 9"

# form → whether our judge of the answer line (`####`, cut as lm-eval cuts) differs from strict-match, and why;
#        whether our `last_number` differs from flexible-extract, and why
FORMS: dict[str, tuple[str, str]] = {
    "48 + 24\n#### {n}": ("", ""),
    "#### {n}": ("", ""),
    "#### {n}.": ("", ""),
    "#### {n}\nThat is all.": ("", ""),
    "#### {n}" + NEXT: ("", ""),
    "#### {n}<|im_end|>\n#### 9": ("", ""),
    "#### {n}</s></s>": ("", ""),
    "The answer is {n}": ("", ""),
    "The answer is {n}.": ("", ""),
    "no number here": ("", ""),
    "": ("", ""),
    "#### 99999": ("", ""),
    "First 3, then 4.\n#### {n}": ("", ""),
    "#### {n} dollars": ("", ""),
    "#### {n}\nI checked it 3 times": ("", ""),
    "#### **{n}**": ("", ""),
    "#### {n}%": ("", ""),
    "It is about {n}, or 99": ("", ""),
    ARTICLE + " {n}": ("", ""),
    "####{n}": ("no blank behind the mark: ours reads the line all the same", ""),
    "#### ${n}": ("a currency sign is in the way of its pattern", ""),
    "#### {n}.0": ("72.0 is 72 to us, and another text to it", "72.0 is 72 to us, and another text to it"),
    "#### {n}.50": ("", ""),
    "so #### {n}": ("in the middle of a line there is no answer line to us", ""),
    "#### {n}\n#### 99999": ("it takes the first; to us two lines that disagree are none", ""),
    "#### {n} or 6": ("it takes the first; to us two numbers on a line are none", ""),
    "#### {n}e0": ("", "the exponent belongs to the number; it takes the digit behind the e"),
    "#### +{n}": ("a plus sign is in the way of its pattern", ""),
    "from 10{n}": ("", "10-5 ends with -5 to it, with 5 to us"),
}


def completions() -> list[tuple[str, str, str]]:
    """(form, completion, answer), for each form and answer."""
    return [(form, form.replace("{n}", answer), answer) for form in FORMS for answer in ANSWERS]


def test_there_are_enough() -> None:
    assert len(completions()) >= 200


def by_ours(judge: Callable[[str, str], float]) -> list[float]:
    return [judge(lm_eval.cut(text), answer.replace(",", "")) for _, text, answer in completions()]


def line_judge(text: str, answer: str) -> float:
    params = correctness.Params(prefix=OWN)
    return correctness.score(text, {"final_answer": answer}, params).score or 0.0


def number_judge(text: str, answer: str) -> float:
    return last_number.REWARD.score(text, {"final_answer": answer}, last_number.REWARD.params()).score or 0.0


@pytest.mark.slow
def test_each_completion_is_judged_as_lm_eval_judges_it(tmp_path: Path) -> None:
    folder = installed("lm-eval-0.4.13", *LM_EVAL)
    pairs = [(text, f"48 + 24 = <<48+24=72>>72\n#### {answer}") for _, text, answer in completions()]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    theirs = run_script(folder, "lm_eval_calls.py", str(tmp_path / "pairs.json"))
    assert theirs == {
        "strict-match": by_ours(lm_eval.strict_match),
        "flexible-extract": by_ours(lm_eval.flexible_extract),
    }


def differing(ours: list[float], theirs: list[float]) -> set[str]:
    return {form for (form, _, _), one, other in zip(completions(), ours, theirs, strict=True) if one != other}


def test_where_our_judges_differ_is_listed_with_the_reason() -> None:
    strict = differing(by_ours(line_judge), by_ours(lm_eval.strict_match))
    lenient = differing(by_ours(number_judge), by_ours(lm_eval.flexible_extract))
    assert strict == {form for form, (why, _) in FORMS.items() if why}
    assert lenient == {form for form, (_, why) in FORMS.items() if why}


def test_the_articles_line_is_no_answer_to_strict_match() -> None:
    text = f"48 + 24 = 72\n{ARTICLE} 72"
    assert (lm_eval.strict_match(text, "72"), lm_eval.flexible_extract(text, "72")) == (0.0, 1.0)
