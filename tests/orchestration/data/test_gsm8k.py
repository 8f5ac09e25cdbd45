"""GSM8K files: the real ones where they lie beside the repository, and small ones with faults."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from orchestration.commands.prepare import prepare
from orchestration.data.tasks.gsm8k import Gsm8k, read_gsm8k_file
from orchestration.errors import DataError
from orchestration.settings.config import load_config
from reward_service.commands import score_one
from reward_service.types import RewardItem

REAL = Path(__file__).resolve().parents[4] / "shared" / "gsm8k"
ITEM = {
    "question": "A pen costs $3. How much are 6 pens and a $1,000 desk?",
    "answer": "Pens: 6*3=$<<6*3=18>>18.\nAll: 18+1000=<<18+1000=1018>>1018\n#### 1,018",
}


def write(folder: Path, name: str, *items: object) -> str:
    path = folder / name
    lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def numbered(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"question": f"What is {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(start, start + count)]


def test_an_item_becomes_a_problem_in_the_articles_format(tmp_path: Path) -> None:
    (problem,) = read_gsm8k_file(Path(write(tmp_path, "f.jsonl", ITEM)), "data.train_file", "train")
    assert problem.problem_id == "gsm8k/train/1"
    assert problem.reference["final_answer"] == "1018"
    assert problem.solution == "Pens: 6*3=$18.\nAll: 18+1000=1018\n#### The final answer is 1018"


@pytest.mark.parametrize(("final", "answer"), [("18", "18"), ("-7", "-7"), ("$2,125", "2125"), ("0.5", "0.5")])
def test_final_answers(tmp_path: Path, final: str, answer: str) -> None:
    path = write(tmp_path, "f.jsonl", {"question": "q", "answer": f"#### {final}"})
    (problem,) = read_gsm8k_file(Path(path), "data.train_file", "train")
    assert (problem.reference["final_answer"], problem.solution) == (answer, f"#### The final answer is {answer}")


def test_shots_are_taken_out_of_training_and_the_order_is_seeded(tmp_path: Path) -> None:
    config = Gsm8k(
        train_file=write(tmp_path, "train.jsonl", *numbered(30)),
        eval_file=write(tmp_path, "test.jsonl", *numbered(10, start=100)),
        num_train=20,
        num_eval=5,
        num_shots=8,
    )
    problems = config.load()
    assert (len(problems.train), len(problems.eval), len(problems.shots)) == (20, 5, 8)
    assert not {p.problem_id for p in problems.train} & {p.problem_id for p in problems.shots}
    assert problems == config.load()
    assert problems.train != config.model_copy(update={"seed": 1}).load().train
    assert [p.problem_id for p in problems.train] != sorted(p.problem_id for p in problems.train)


def test_shots_of_a_file_of_their_own_leave_all_training_problems(tmp_path: Path) -> None:
    config = Gsm8k(
        train_file=write(tmp_path, "train.jsonl", *numbered(6)),
        eval_file=write(tmp_path, "test.jsonl", *numbered(2, start=100)),
        shots_file=write(tmp_path, "shots.jsonl", *numbered(3, start=200)),
        num_eval=2,
        num_shots=2,
    )
    problems = config.load()
    assert (len(problems.train), [shot.problem_id for shot in problems.shots]) == (6, ["gsm8k/shot/1", "gsm8k/shot/2"])
    with pytest.raises(DataError, match=r"data\.num_shots=4, and data\.shots_file holds 3"):
        config.model_copy(update={"num_shots": 4}).load()


def test_a_held_out_question_is_left_out_of_training(tmp_path: Path) -> None:
    config = Gsm8k(
        train_file=write(tmp_path, "train.jsonl", *numbered(6)),
        eval_file=write(tmp_path, "test.jsonl", *numbered(3)),
        num_eval=3,
        num_shots=1,
    )
    problems = config.load()
    assert len(problems.train) == 2, "six, less three held out, less one example"


def test_too_few_problems_for_the_shots(tmp_path: Path) -> None:
    config = Gsm8k(
        train_file=write(tmp_path, "train.jsonl", *numbered(8)),
        eval_file=write(tmp_path, "test.jsonl", *numbered(3, start=100)),
    )
    with pytest.raises(DataError, match=r"no training problems are left; lower data\.num_eval and data\.num_shots"):
        config.load()


def test_a_missing_file_says_which_setting_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        Gsm8k(train_file=str(tmp_path / "none.jsonl")).load()
    message = str(raised.value)
    assert "none.jsonl" in message
    assert "data.train_file=PATH" in message
    assert "grade-school-math" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"question": "q"', "line 2: not a JSON object"),
        ('{"question": "q"}', "line 2: not a JSON object with `question` and `answer`"),
        ("[1]", "line 2: not a JSON object"),
        ('{"question": 1, "answer": "#### 1"}', "line 2: `question` and `answer` must be texts"),
        (
            '{"question": "q", "answer": "it is 1"}',
            "line 2: `answer` must end with a line like '#### 18', got 'it is 1'",
        ),
        ('{"question": "q", "answer": "#### one"}', "line 2: `answer` must end with a line like"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = write(tmp_path, "f.jsonl", ITEM, line)
    with pytest.raises(DataError) as raised:
        read_gsm8k_file(Path(path), "data.train_file", "train")
    assert complaint in str(raised.value)


def test_blank_lines_are_skipped_and_line_separators_inside_a_text_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('\n{"question": "one\u2028two", "answer": "#### 1"}\n\n', encoding="utf-8")
    (problem,) = read_gsm8k_file(path, "data.train_file", "train")
    assert problem.question == "one\u2028two"
    assert problem.problem_id == "gsm8k/train/2"


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.eval_file\) holds no problems"):
        read_gsm8k_file(Path(write(tmp_path, "f.jsonl", "")), "data.eval_file", "eval")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real GSM8K does not lie beside the repository")
def test_the_real_files_read_whole() -> None:
    num_train, num_eval = (
        len((REAL / name).read_text("utf-8").split("\n")) - 1 for name in ("train.jsonl", "test.jsonl")
    )
    config = Gsm8k(train_file=str(REAL / "train.jsonl"), eval_file=str(REAL / "test.jsonl"), num_eval=num_eval)
    problems = config.load()
    assert (len(problems.train), len(problems.eval), len(problems.shots)) == (num_train - 8, num_eval, 8)
    for problem in (*problems.train, *problems.eval, *problems.shots):
        float(problem.reference["final_answer"])
        assert "<<" not in problem.solution
        assert problem.solution.endswith(f"\n#### The final answer is {problem.reference['final_answer']}")


def test_gsm8ks_own_answer_line(tmp_path: Path) -> None:
    """Asked for, shown in the examples, rewarded and judged; `rlvr prepare` writes files that ask for it again."""
    files = [f"data.{part}_file={write(tmp_path, part, *numbered(9, at))}" for part, at in (("train", 0), ("eval", 50))]
    config = load_config("gsm8k", [*files, "data.num_shots=2", "data.num_eval=3", "data.answer_prefix='####'"])
    problems = config.data.load()
    assert config.data.layout().instruction == "Solve the problem. End with #### N."
    assert [shot.solution.splitlines()[-1] for shot in problems.shots] == [
        f"#### {shot.reference['final_answer']}" for shot in problems.shots
    ]
    strict = config.data.judges().strict
    assert strict is not None
    for spec in (*config.data.rewards(), strict):
        result = score_one(
            [spec], RewardItem(completion=problems.train[0].solution, reference=problems.train[0].reference)
        )
        assert (result.total or 0) > 0, spec
    settings = shlex.split(prepare(config, out=tmp_path / "out", upload_to=None))
    again = load_config("gsm8k", [*settings, "data.num_shots=2", "data.num_eval=3"])
    assert again.data.layout() == config.data.layout()
    assert {p.solution for p in again.data.load().eval} == {p.solution for p in problems.eval}
