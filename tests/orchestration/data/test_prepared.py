"""`rlvr prepare gsm8k`: the division, leakage and near-duplicates, and the files as a stranger gets them."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest
from pyarrow import parquet

from orchestration.cli import main
from orchestration.data.near_duplicates import near_duplicates, similarity
from orchestration.data.prepared import divide
from orchestration.data.tasks.gsm8k import Gsm8k, fixed_examples
from orchestration.errors import DataError
from orchestration.settings.config import load_config
from orchestration.types import Problem

REAL = Path(__file__).resolve().parents[4] / "shared" / "gsm8k"


def problem(number: int, question: str = "", part: str = "train") -> Problem:
    return Problem(
        problem_id=f"{part}/{number}",
        question=question or f"What is {number} and one?",
        reference={"final_answer": str(number + 1)},
        solution=f"It is {number + 1}.\n#### The final answer is {number + 1}",
    )


def test_test_questions_and_repeated_ones_are_in_no_set() -> None:
    problems = [*map(problem, range(40)), problem(40, "what is  3 AND one?")]
    prepared = divide(problems, [problem(0, "WHAT is 7 and one?", "test")], shots=4, validation=0.25, seed=1)
    assert prepared.leakage.removed == ("train/7",)
    assert prepared.repeated == ("train/40",)
    sets = prepared.problems
    assert (len(sets.train), len(sets.eval), len(sets.shots)) == (25, 10, 4)
    assert "train/7" not in {p.problem_id for p in (*sets.train, *sets.eval, *sets.shots)}
    assert divide(problems, None, shots=4, validation=0.25, seed=1).leakage.num_test is None
    assert divide(problems, None, shots=4, validation=0.25, seed=2).problems != sets


def test_a_fixed_example_that_is_held_out_is_refused() -> None:
    problems = [*map(problem, range(10)), *fixed_examples()[:1]]
    with pytest.raises(DataError, match="is held out; choose other examples"):
        divide(problems, problems[-1:], shots=1, validation=0.1, seed=0, fixed=fixed_examples())


def test_the_same_story_with_other_numbers_is_a_near_duplicate() -> None:
    assert similarity("Ann has 3 red pens.", "ann has 1,004 red pens") == 1
    assert similarity("Ann has 3 red pens.", "Ann has 4 red hats.") == 0.5
    assert similarity("How many?", "A tree is high.") == 0
    story = "Ann has 3 red pens and buys 4 more in town."
    tests = [problem(0, story, "test"), problem(1, "Nothing is like this one here.", "test")]
    (pair,) = near_duplicates(tests, [problem(5), problem(6, story.replace("3", "8"))])
    assert (pair.first, pair.second, pair.similarity, pair.same_numbers) == ("test/0", "train/6", 1.0, False)


def test_fixed_examples_are_right_and_the_article_style_is_its_layout() -> None:
    layout = Gsm8k(style="article", examples="fixed").layout()
    assert (layout.style, layout.instruction, layout.question_label) == ("plain", "", "Question:")
    for example in fixed_examples():
        working, _, line = example.solution.rpartition("\n")
        assert line == f"#### The final answer is {example.reference['final_answer']}"
        equations = re.findall(r"((?:\d+ [-+*/] )+\d+) = (-?\d+)", working)
        assert equations
        assert all(eval(left) == int(right) for left, right in equations), equations


def real(*words: str) -> int:
    return main(["prepare", "gsm8k", "--source", str(REAL / "train.jsonl"), *words])


@pytest.mark.skipif(not REAL.is_dir(), reason="the real GSM8K does not lie beside the repository")
def test_the_real_data_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert real("--shots", "3", "--seed", "7", "data.style=article", "--out", str(tmp_path)) == 0
    settings = shlex.split(capsys.readouterr().out)
    card = json.loads((tmp_path / "card.json").read_text())
    for name, digest in card["sha256"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
        assert digest in (tmp_path / "DATA_CARD.md").read_text()
    assert card["licence"].startswith("MIT License")
    negative = (REAL / "train.jsonl").read_text().count("#### -")
    assert sum(of["negative"] for of in card["answers"].values()) == negative == 3
    rows = json.loads((tmp_path / "train.json").read_text())
    assert rows == parquet.read_table(tmp_path / "train.parquet").to_pylist()
    assert sum(card["counts"].values()) + len(card["repeated"]) + len(card["leakage"]["removed"]) == 7473
    first = rows[0]["prompt"]
    assert first.count("Question: ") == 4
    assert first.endswith(f"\n\nQuestion: {rows[0]['question']}\nSolution: Let's think step by step.")
    assert first.split("\n\n")[0].splitlines()[-1].startswith("#### The final answer is ")
    problems = load_config("gsm8k", [*settings, "data.num_eval=700"]).data.load()
    assert [p.problem_id for p in problems.shots] == [f"gsm8k/shot/{n}" for n in (1, 2, 3)]
    assert (len(problems.train), len(problems.eval)) == (card["counts"]["train"], 700)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--shots", "17"), "--shots 17: from 0 to 16 worked examples are possible"),
        (("--shots", "9", "data.examples=fixed"), "--shots 9: from 0 to 8 fixed examples are possible"),
        (("--validation", "1.5"), "--validation 1.5 is a share of the problems: between 0 and 1"),
        (("--source", "bad.jsonl"), "bad.jsonl, line 2: not a JSON object with `question` and `answer`"),
        (("--source", "bad.parquet"), "--source='bad.parquet' cannot be read"),
        (("--source", "bad.csv"), "bad.csv, row 1: not a JSON object with `question` and `answer` ('answer')"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    words: tuple[str, ...],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ok.jsonl").write_text('{"question": "a", "answer": "#### -1,000"}\n')
    Path("bad.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n{"question": \n')
    Path("bad.parquet").write_text("no table")
    Path("bad.csv").write_text("question,solution\na,b\n")
    assert main(["prepare", "gsm8k", "--source", "ok.jsonl", *words, "--out", "out"]) in (1, 2)
    said = capsys.readouterr().err.strip()
    assert complaint in said
    assert "\n" not in said
    assert not Path("out").exists()


def test_its_options_are_for_gsm8k(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["prepare", "arithmetic", "--shots", "2", "--out", str(tmp_path)]) == 2
    assert "are for GSM8K, and arithmetic is the task 'arithmetic'" in capsys.readouterr().err
