"""The data card: what lies in a folder of prepared problems, and how far it can be trusted. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestration.data.near_duplicates import NearDuplicate
from orchestration.data.prepared import Prepared
from orchestration.types import Problem

_SHOWN = 10
"""So many near-duplicates stand in the text; all are in the JSON."""


def facts(
    prepared: Prepared,
    *,
    settings: Mapping[str, Any],
    source: Mapping[str, Any],
    licence: str,
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    """The card as data.

    Args:
        settings: by which it was made.
        source: where it comes from, with SHA-256.
        licence: as it is stated, or that it is not.
        hashes: SHA-256 of each file, by its name.
    """
    sets = {"train": prepared.problems.train, "validation": prepared.problems.eval, "shots": prepared.problems.shots}
    leakage = prepared.leakage
    return {
        "source": dict(source),
        "licence": licence,
        "settings": dict(settings),
        "counts": {name: len(problems) for name, problems in sets.items()},
        "answers": {name: _answers(problems) for name, problems in sets.items()},
        "shots": [problem.problem_id for problem in prepared.problems.shots],
        "repeated": list(prepared.repeated),
        "leakage": {
            "num_test": leakage.num_test,
            "removed": list(leakage.removed),
            "test_questions_in_train_validation_or_shots": 0 if leakage.num_test is not None else None,
            "near_test": [asdict(pair) for pair in leakage.near],
            "near_validation": [asdict(pair) for pair in leakage.near_validation],
        },
        "sha256": dict(hashes),
    }


def _answers(problems: Sequence[Problem]) -> dict[str, int]:
    answers = [str(problem.reference["final_answer"]) for problem in problems]
    return {
        "negative": sum(answer.startswith("-") for answer in answers),
        "not_whole": sum("." in answer for answer in answers),
        "over_999": sum(abs(float(answer)) > 999 for answer in answers),
    }


def text(card: Mapping[str, Any], prepared: Prepared) -> str:
    """The card in Markdown."""
    counts, answers, leakage = card["counts"], card["answers"], prepared.leakage
    rows = "\n".join(
        f"| {name} | {counts[name]} | {of['negative']} | {of['not_whole']} | {of['over_999']} |"
        for name, of in answers.items()
    )
    return f"""# Data card

Grade-school word problems with worked solutions, for training with verifiable rewards.

- Source: {", ".join(f"{name} {value}" for name, value in card["source"].items())}
- Licence: {card["licence"]}
- Made with: {", ".join(f"{name}={value}" for name, value in card["settings"].items())}

| set | problems | negative answers | not whole | over 999 |
|---|---|---|---|---|
{rows}

Columns: `id`, `question`, `answer` (working, then `#### N`), `final_answer`, `prompt` (examples included). A
problem is in one set alone; {len(prepared.repeated)} whose question recurs were left out.

## Leakage

{_leakage(leakage.num_test, leakage.removed)}

Nearly the same as a test question (three-word sequences shared, numbers aside):

{_pairs(leakage.near)}

Nearly the same in validation and training:

{_pairs(leakage.near_validation)}

## Files

| file | SHA-256 |
|---|---|
{chr(10).join(f"| {name} | {digest} |" for name, digest in card["sha256"].items())}
"""


def _leakage(num_test: int | None, removed: Sequence[str]) -> str:
    if num_test is None:
        return "Not checked against a test set: none was given (--test FILE)."
    gone = f"{len(removed)} problems were removed for it" if removed else "none had to be removed"
    return f"None of {num_test} test questions is in train, validation or the examples; {gone}."


def _pairs(pairs: Sequence[NearDuplicate]) -> str:
    if not pairs:
        return "none"
    shown = [
        f"| {pair.first} | {pair.second} | {pair.similarity:.2f} | {'yes' if pair.same_numbers else 'no'} |"
        for pair in pairs[:_SHOWN]
    ]
    more = [] if len(pairs) <= _SHOWN else [f"\n{len(pairs) - _SHOWN} more are in card.json."]
    return "\n".join(["| first | second | similarity | same numbers |", "|---|---|---|---|", *shown, *more])
