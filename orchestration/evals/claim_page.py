"""The page of a claim: one HTML text that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any, Final

from orchestration.evals.answers import ADAPTER, BASE, GREEDY, HELD_OUT, TRAIN, Answer
from orchestration.evals.claim import Evidence, Sentence
from orchestration.evals.table import change, in_words, p_value

_NAMES: Final = {
    "strict": "strict: in the form that was asked for",
    "lenient": "lenient: in any form",
    "ends_by_itself": "stops by itself",
    "truncated": "cut off by the limit",
    "tokens": "tokens",
    "article": "the article's evaluation",
    "strict_match": "lm-eval, strict-match",
    "flexible_extract": "lm-eval, flexible-extract",
}
_VERDICTS: Final = {"yes": ("c2", "may be claimed"), "no": ("c4", "may not"), "open": ("c1", "open")}
_SHOWN: Final = 4
_PAIRS: Final = 10
LM_EVAL: Final = (
    "lm-eval's task gsm8k asks in its own words (five examples, plain text) and ends an answer at Question:, </s> and "
    "<|im_end|>, after 256 tokens at the latest; the two rows above apply its filters to the completions judged here. "
    "Its strict-match reads #### N alone and takes the first: the article's line #### The final answer is N is none to "
    "it. Its flexible-extract takes the last number and compares texts, so that 72.0 is not 72. What is left between "
    "its figures and these rows is the prompt, and rounding between engines."
)


def render(title: str, evidence: Evidence, claimed: Sequence[Sentence], *, made_by: str) -> str:
    """The page's HTML.

    Args:
        claimed: what follows from the evidence.
        made_by: the command line.
    """
    parts = [
        _section("What may be claimed", _verdicts(claimed)),
        _section("On held-out problems, greedy", _figures(evidence.results[HELD_OUT])),
    ]
    if TRAIN in evidence.results:
        told = f"Completions run on without stops, up to {evidence.article_tokens} tokens; each rule reads its part."
        parts.append(
            _section("The article's evaluation, on training problems", _figures(evidence.results[TRAIN]) + _note(told))
        )
    part = TRAIN if TRAIN in evidence.results else HELD_OUT
    parts += [
        _section("Read differently by the article's rule", _misread(evidence.answers, part)),
        _section("Other seeds, and controls", _others(evidence)),
        _section("Leakage", _leakage(evidence)),
        _section("By category", _categories(evidence.results[HELD_OUT])),
        _section("How it was measured", _note(evidence.results["method"]) + _note(LM_EVAL) + _note(made_by)),
    ]
    style = resources.files("orchestration.page").joinpath("page.css").read_text()
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{style}</style></head><body><header><h1>{escape(title)}</h1></header>"
        f"<main>{''.join(parts)}</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f'<section><h2>{escape(title)}</h2><div class="table">{content}</div></section>' if content else ""


def _note(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in body]
    return f"<table>{''.join(lines)}</table>"


def _verdicts(claimed: Sequence[Sentence]) -> str:
    rows = []
    for one in claimed:
        colour, word = _VERDICTS[one.verdict]
        rows.append(
            f'<tr><td class="{colour}" style="white-space:nowrap"><b>{word}</b></td><td>{escape(one.text)}</td></tr>'
        )
    return f"<table>{''.join(rows)}</table>"


def _figures(part: Mapping[str, Any]) -> str:
    sides = part["sides"]
    changes = part.get("difference", {}).get(GREEDY, {})
    rows = [["rule", *sides, "difference", "p"]]
    for name in next(iter(sides.values()))[GREEDY]:
        cells = [in_words(name, figures[GREEDY].get(name)) for figures in sides.values()]
        rows.append([_NAMES.get(name, name), *cells, change(name, changes.get(name)), p_value(changes.get(name))])
    return _table(rows) + _note(f"{part['num_problems']} problems; 95 % intervals.")


def _misread(answers: Sequence[Answer], part: str) -> str:
    found = [
        answer
        for answer in answers
        if answer.part == part
        and answer.draw == GREEDY
        and None not in (answer.scores.get("article"), answer.scores.get("lenient"))
        and answer.scores["article"] != answer.scores["lenient"]
    ]
    shown = []
    for answer in found[:_SHOWN]:
        said = "right" if answer.scores["article"] else "wrong"
        rest = answer.run_on[len(answer.text) :] if answer.run_on.startswith(answer.text) else ""
        shown.append(
            f'<div class="one"><header>{escape(answer.side)}, {escape(answer.problem_id)}: {said} to the article\'s '
            f"rule</header><pre>{escape(answer.text)}</pre><pre class=prompt>{escape(rest[:400])}</pre></div>"
        )
    told = f"{len(found)} of them; the grey part is what came behind the answer."
    return _note(told) + "".join(shown) if found else ""


def _others(evidence: Evidence) -> str:
    if not evidence.others:
        return ""
    rows = [["run", "rewards", "seed", "its strict gain", "this adapter is ahead by", "p"]]
    for one in evidence.others:
        trained = "its own" if one.control == "none" else one.control
        gain, ahead = change("", one.gain), change("", one.behind)
        rows.append([one.name, trained, str(one.seed), gain, ahead, p_value(one.behind)])
    return _table(rows)


def _leakage(evidence: Evidence) -> str:
    rows = [["", "the same question", "nearly the same", "of these with the same numbers"]]
    pairs = [["", "", "similarity", "same numbers"]]
    for one in evidence.overlaps:
        rows.append([f"{one.first} in {one.second}", str(len(one.exact)), str(len(one.near)), str(one.same_numbers)])
        pairs += [
            [pair.first, pair.second, f"{pair.similarity:.2f}", "yes" if pair.same_numbers else "no"]
            for pair in one.near[:_PAIRS]
        ]
    told = "Nearly the same: at least 0.7 of the three-word sequences of either question are in both, numbers aside."
    return _table(rows) + _note(told) + (_table(pairs) if len(pairs) > 1 else "")


def _categories(part: Mapping[str, Any]) -> str:
    found = part.get("by_category")
    if not found:
        return ""
    rows = [["category", "problems", "strict, base", "strict, adapter"]]
    for category, of in found.items():
        cells = [in_words("strict", of[side].get("strict")) for side in (BASE, ADAPTER)]
        rows.append([category, str(of["num_problems"]), *cells])
    return _table(rows)
