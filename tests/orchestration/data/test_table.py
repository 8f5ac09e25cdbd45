"""Anybody's table as problems: formats, columns, splits, and what is wrong with one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from orchestration.data.rows import read_rows
from orchestration.data.tasks.table import Table
from orchestration.errors import ConfigError, DataError
from orchestration.settings.config import load_config

ROWS = [{"q": f"What is {n} + 1?", "a": str(n + 1), "kind": "sum", "more": {"deep": n}} for n in range(30)]
COLUMNS = ["data=table", "data.prompt=q", "data.reference={final_answer: a}"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.parquet"])
def test_every_format_gives_the_same_problems(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / name, ROWS)
    task = load_config("tiny", [*COLUMNS, f"data.train_file={file}", "data.num_eval=5", "data.category=kind"]).data
    problems = task.load()
    assert (len(problems.train), len(problems.eval)) == (25, 5)
    problem = problems.train[0]
    number = int(problem.reference["final_answer"]) - 1
    assert problem.question == f"What is {number} + 1?"
    assert problem.solution == f"#### The final answer is {number + 1}"
    assert problem.category == "sum"
    assert {p.question for p in problems.train}.isdisjoint(p.question for p in problems.eval)
    assert task.load() == problems


def test_held_out_problems_may_have_a_file_and_examples_a_column(tmp_path: Path) -> None:
    rows = [{**row, "work": f"worked out: {row['a']}"} for row in ROWS]
    train, held_out = write(tmp_path / "train.jsonl", rows[:20]), write(tmp_path / "test.jsonl", rows[15:])
    files = [f"data.train_file={train}", f"data.eval_file={held_out}"]
    task = load_config("tiny", [*COLUMNS, *files, "data.num_shots=2", "data.solution=work"]).data
    problems = task.load()
    assert (len(problems.train), len(problems.eval), len(problems.shots)) == (13, 15, 2)
    assert problems.shots[0].solution.startswith("worked out: ")
    assert task.files() == {"train_file": str(train), "eval_file": str(held_out)}


def test_a_reference_keeps_its_types_and_reaches_into_objects(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", ROWS)
    words = [
        "data.reference={a: a, deep: more.deep}",
        "reward.rewards=[{name: length}]",
        f"data.train_file={file}",
        "data.num_eval=5",
    ]
    problem = load_config("tiny", ["data=table", "data.prompt=q", *words]).data.load().train[0]
    assert problem.reference == {"a": str(problem.reference["deep"] + 1), "deep": problem.reference["deep"]}


def test_messages_may_be_asked(tmp_path: Path) -> None:
    rows = [{"q": [{"role": "user", "content": f"{n}?"}], "a": n} for n in range(5)]
    file = write(tmp_path / "t.jsonl", rows)
    problems = load_config("tiny", [*COLUMNS, f"data.train_file={file}", "data.num_eval=1"]).data.load()
    assert problems.train[0].text.endswith("?")


@pytest.mark.parametrize(
    ("answers", "reward", "asks"),
    [("number", "gsm8k_correctness", "####"), ("expression", "math", "boxed"), ("text", "exact", "####")],
)
def test_what_the_answers_are_decides_rewards_judges_and_instruction(answers: str, reward: str, asks: str) -> None:
    config = load_config("tiny", [*COLUMNS, "data.train_file=t.csv", f"data.answers={answers}"])
    assert reward in [spec.name for spec in config.rewards]
    assert config.judges["strict"].name == reward
    assert asks in config.data.layout().instruction
    own = load_config("tiny", [*COLUMNS, "data.train_file=t.csv", "data.instruction=Say it.", "data.style=plain"])
    assert (own.data.layout().instruction, own.data.layout().style) == ("Say it.", "plain")
    judged = load_config("tiny", [*COLUMNS, "data.train_file=t.csv", "data.lenient={name: last_number}"])
    assert list(judged.judges) == ["lenient"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.jsonl", None, r"data\.train_file='.*none.jsonl' does not exist"),
        ("t.txt", "x", r"its name must end with \.jsonl, \.json, \.csv, \.tsv, \.parquet"),
        ("t.jsonl", "\n", "holds no rows"),
        ("t.jsonl", '{"q": 1}\n{', "line 2 is not JSON"),
        ("t.jsonl", "[1]", "line 1 is not an object"),
        ("t.json", "{}", "not an array"),
        ("t.csv", "q,a\n1\n", "not as many cells"),
        ("t.csv", "q,a,a\nx,1,2\n", "two columns are called 'a': rename one"),
        ("t.parquet", "no parquet", "cannot be read"),
        ("t.jsonl", '{"q": "x", "b": 1}', "has no column 'a'; its columns are: 'q', 'b'"),
        ("t.csv", "q, a\nx, 1\n", "has no column 'a'; its columns are: 'q', ' a'"),
        ("t.csv", "q,a\nx,1\ny,\n", "table/train/2 has no answer in the column 'a'; fill it, or leave the row out"),
        ("t.jsonl", '{"q": "x", "a": null}', "table/train/1 has no answer in the column 'a'"),
        ("t.jsonl", '{"q": " ", "a": 1}', "column 'q' is empty"),
        ("t.jsonl", '{"q": 3, "a": 1}', "neither a text nor messages"),
        ("t.jsonl", '{"q": [{"role": "x", "content": "y"}], "a": 1}', "without role"),
        ("t.jsonl", '{"q": [{"role": "assistant", "content": "y"}], "a": 1}', "assistant's turn"),
        ("t.jsonl", '{"q": "x", "a": 1}', "no training problems are left"),
    ],
)
def test_a_broken_table_is_said_with_file_and_row(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    task = load_config("tiny", [*COLUMNS, f"data.train_file={tmp_path / name}"]).data
    with pytest.raises(DataError, match=message):
        task.load()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"either data\.train_file or data\.dataset"),
        (["data.train_file=a.csv", "data.dataset=x/y"], r"either data\.train_file or data\.dataset"),
        (["data.train_file=a.csv", "data.eval_file=a.csv"], "are the same file: a.csv; leave the second out"),
        (["data.train_file=a.csv", "data.reference={}"], "data.reference"),
    ],
)
def test_contradictions_are_said(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", [*COLUMNS, *words])


def test_a_data_set_of_the_hub_is_read_by_its_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    write(folder / "data" / "train.jsonl", ROWS[:20])
    write(folder / "data" / "test.jsonl", ROWS[20:])
    assert datasets is not None
    words = [f"data.dataset={folder}", "data.eval_split=test", "data.num_eval=4"]
    problems = load_config("tiny", [*COLUMNS, *words]).data.load()
    assert (len(problems.train), len(problems.eval)) == (20, 4)
    with pytest.raises(DataError, match=r"split 'no_such' cannot be had: .*data\.subset"):
        Table(dataset=str(folder), prompt="q", reference={"final_answer": "a"}, train_split="no_such").load()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "\ufeffq,a\r\nx,1\r\n"),
        ("t.csv", "q;a\nx;1\n"),
        ("t.tsv", "q\ta\nx\t1\n"),
        ("t.jsonl", '\ufeff{"q": "x", "a": "1"}\r\n\r\n'),
        ("t.json", '\ufeff[{"q": "x", "a": "1"}]'),
        ("t.json", '{"q": "x", "a": "1"}\n{"q": "x", "a": "1"}\n'),
    ],
)
def test_a_table_is_read_as_programs_write_it(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_rows(tmp_path / name, "data.train_file")[0] == {"q": "x", "a": "1"}


def test_a_text_may_be_long_and_must_be_utf_8(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"q,a\n{'x' * 200_000},1\n")
    assert len(read_rows(tmp_path / "t.csv", "data.train_file")[0]["q"]) == 200_000
    (tmp_path / "t.csv").write_text("q,a\ncafé,1\n", encoding="latin-1")
    with pytest.raises(DataError, match="is not UTF-8 text: save it as UTF-8"):
        read_rows(tmp_path / "t.csv", "data.train_file")


@pytest.mark.parametrize(
    ("answer", "solution"),
    [("7", "#### The final answer is 7"), (["7", "VII"], "#### The final answer is 7"),
     ("3 + 4 = 7\n#### 7", "3 + 4 = 7\n#### The final answer is 7")],
)  # fmt: skip
def test_an_example_ends_with_one_answer_line(answer: Any, solution: str, tmp_path: Path) -> None:
    rows = [{"q": f"{n}?", "a": {"all": [answer]}} for n in range(5)]
    words = ["data=table", f"data.train_file={write(tmp_path / 't.jsonl', rows)}", "data.num_eval=1", "data.prompt=q"]
    problems = load_config("tiny", [*words, "data.reference={final_answer: a.all.0}"]).data.load()
    assert problems.train[0].solution == solution
