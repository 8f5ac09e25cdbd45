"""What may be claimed, of answers that are known; the page in one piece."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.cli import main
from orchestration.commands.evaluations.claim import asked_in_training
from orchestration.data.problems import Problems
from orchestration.data.tasks.arithmetic import Arithmetic
from orchestration.evals.answers import ADAPTER, BASE, GREEDY, HELD_OUT, TRAIN, Answer
from orchestration.evals.claim import Evidence, Sentence, misreadings, other, sentences
from orchestration.evals.claim_page import render
from orchestration.evals.figures import METHOD, summary
from orchestration.evals.leakage import overlap, overlaps
from orchestration.settings.config import dump_config, load_config
from orchestration.types import Problem

N = 40
PROBLEMS = Problems(
    train=tuple(Problem(problem_id=f"t/{n}", question=f"train {n}?", reference={}) for n in range(3)),
    eval=tuple(Problem(problem_id=f"p/{n}", question=f"asked {n}?", reference={}) for n in range(N)),
)


def answer(side: str, part: str, number: int, *, strict: bool, lenient: bool, ends: bool, article: bool) -> Answer:
    scores = {"strict": strict, "lenient": lenient, "article": article}
    return Answer(
        side=side,
        part=part,
        draw=GREEDY,
        problem_id=f"{part}/{number}",
        category="",
        sample=0,
        text=f"</script> it is {number}",
        num_tokens=5,
        ended="end" if ends else "length",
        scores={name: float(score) for name, score in scores.items()},
        run_on=f"</script> it is {number}\nQuestion: 9",
    )


def answers(side: str, *, strict: float, lenient: float, ends: float, article: float) -> list[Answer]:
    """Of so large a share of the problems."""
    return [
        answer(
            side,
            part,
            number,
            strict=number < strict * N,
            lenient=number < lenient * N,
            ends=number < ends * N,
            article=number < article * N,
        )
        for part in (HELD_OUT, TRAIN)
        for number in range(N)
    ]


BASE_ANSWERS = answers(BASE, strict=0.1, lenient=0.5, ends=0.2, article=0.1)
GAINED = answers(ADAPTER, strict=0.6, lenient=0.6, ends=1.0, article=0.6)


def evidence(of_adapter: list[Answer], **changes: Any) -> Evidence:
    found = [*BASE_ANSWERS, *of_adapter]
    parts = {part: summary([one for one in found if one.part == part], seed=0) for part in (HELD_OUT, TRAIN)}
    known = Evidence(
        results={"seed": 0, "method": METHOD, **parts},
        answers=found,
        overlaps=overlaps(PROBLEMS),
        control="none",
        others=(),
        trained_on_held_out=0,
        limit=32,
        article_tokens=64,
    )
    return replace(known, **changes)


def said(found: list[Sentence], beginning: str) -> Sentence:
    (one,) = [one for one in found if one.text.startswith(beginning)]
    return one


def test_a_gain_that_is_form_and_stopping_is_told_from_one_of_answers() -> None:
    found = sentences(evidence(GAINED))
    assert said(found, "Strict accuracy rose: 10.0 % → 60.0 %: +50.0 [").verdict == "yes"
    assert "+40.0 [" in said(found, "The strict gain is").text  # the lenient rule gained 10 of the 50 points
    article = said(found, "The article's own evaluation").text
    assert "says +50.0 [" in article
    assert "that is +40.0 [" in article
    assert said(found, "No change of lenient accuracy").text.endswith("on 40 problems (p 0.1250).")  # 4 changed
    assert "16 right answers of the base and 0 of the adapter are misread" in article
    assert said(found, "Stops by itself: 20.0 % → 100.0 %").verdict == "yes"
    assert said(found, "The limit of 32 tokens cuts answers off (base 80.0 %").verdict == "open"
    assert misreadings([*BASE_ANSWERS, *GAINED], TRAIN) == {BASE: (16, 0), ADAPTER: (0, 0)}


def test_a_change_whose_interval_holds_0_may_not_be_claimed() -> None:
    nothing = answers(ADAPTER, strict=0.125, lenient=0.5, ends=0.2, article=0.1)
    assert said(sentences(evidence(nothing)), "No change of strict accuracy may be claimed").verdict == "no"
    assert said(sentences(evidence(nothing)), "No gain in stopping by itself may be claimed: 20.0 %").verdict == "no"
    worse = answers(ADAPTER, strict=0.0, lenient=0.1, ends=0.2, article=0.0)
    assert said(sentences(evidence(worse)), "Lenient accuracy fell").verdict == "no"


def test_a_gain_is_held_against_its_control_and_other_seeds() -> None:
    assert said(sentences(evidence(GAINED)), "That the gain comes from the rewards is not shown").verdict == "open"
    mine = [*BASE_ANSWERS, *GAINED]

    def beside(strict: float, control: str) -> list[Sentence]:
        theirs = answers(ADAPTER, strict=strict, lenient=strict, ends=1.0, article=0)
        run = other("other", seed=3, control=control, answers=theirs, mine=mine)
        return sentences(evidence(GAINED, others=[run]))

    assert said(beside(0.1, "random"), "The gain needs the rewards: the control other (random rewards").verdict == "yes"
    assert said(beside(0.6, "shuffled"), "The gain is not told apart from that of the control").verdict == "no"
    found = said(beside(0.4, "none"), "Over 2 seeds (0, 3) the strict gain runs from +30.0 to +50.0")
    assert found.verdict == "yes"
    assert said(sentences(evidence(GAINED)), "One seed (0)").verdict == "open"


def test_what_was_trained_on_noise_or_on_what_is_asked_is_said_first() -> None:
    control = sentences(evidence(GAINED, control="shuffled"))
    assert control[0].text.startswith("This adapter was trained on its rewards dealt out anew at random")
    asked = sentences(evidence(GAINED, trained_on_held_out=2))
    assert "2 were asked in training: these figures are not about unseen problems" in asked[0].text
    foreign = sentences(evidence(GAINED, control="unknown", trained_on_held_out=None))
    assert said(foreign, "What a foreign adapter was trained on").verdict == "open"


def test_leakage_is_found_with_its_similarity() -> None:
    story = "Ann has {} red pens and buys {} more of them at the shop."
    held_out = [Problem(problem_id=f"e/{n}", question=story.format(n, 2), reference={}) for n in range(2)]
    train = [
        Problem(problem_id="t/0", question=story.format(0, 2).upper(), reference={}),
        Problem(problem_id="t/1", question=story.format(7, 9), reference={}),
    ]
    found = overlap("held-out", held_out, "training", train)
    assert found.exact == [("e/0", "t/0")]
    assert {(pair.first, pair.similarity) for pair in found.near} == {("e/1", 1.0)}
    assert found.facts()["num_near_with_same_numbers"] == 0
    generated = overlaps(Arithmetic(num_train=50, num_eval=20, num_shots=2).load())
    assert [len(one.exact) for one in generated] == [0, 0, 0]


def test_the_page_is_one_piece_and_says_what_models_say_as_text() -> None:
    run = other("other", seed=3, control="random", answers=GAINED, mine=[*BASE_ANSWERS, *GAINED])
    known = evidence(GAINED, others=[run])
    page = render("What may be <claimed>", known, sentences(known), made_by="rlvr claim run")
    assert "</script>" not in page
    assert "What may be &lt;claimed&gt;" in page
    for told in ("may be claimed", "the article&#x27;s evaluation", "Other seeds, and controls", "rlvr claim run"):
        assert told in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "give a run folder, or --model, --adapter and --data"),
        (["{run}", "--model", "tiny"], "give RUN_DIR, or --model, --adapter and --data"),
        (["{run}", "--control", "{run}"], "that run was trained on its rewards, not with reward.control=random"),
        (["{run}", "--seed-run", "{control}"], "that run is a control; give it as --control"),
        (["{run}", "--seed-run", "{foreign}"], "has other settings of `data`"),
        (["/nowhere"], "is not a run's folder"),
    ],
)
def test_what_cannot_be_claimed_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    for name, override in (("run", "seed=0"), ("control", "reward.control=random"), ("foreign", "data.num_eval=7")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(dump_config(load_config("tiny", [override])))
    places = {name: str(tmp_path / name) for name in ("run", "control", "foreign")}
    assert main(["claim", *(word.format(**places) for word in words)]) == 2
    assert complaint in capsys.readouterr().err
    assert asked_in_training(tmp_path / "run", {"p"}) is None
