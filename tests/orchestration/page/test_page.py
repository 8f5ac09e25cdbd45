"""The page of runs whose folders the run folder itself wrote; clicked through in a real browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.models import WordLevel

from learner.types import UNKNOWN, LogRatios, ScoredCompletion, ScoredGroup
from orchestration.cli import main
from orchestration.page.chart import Line, chart, label, ticks
from orchestration.page.data import read_run
from orchestration.page.page import render
from orchestration.page.tokens import Pieces, cut, pieces_by, pieces_of
from orchestration.run.ledger.folder import RunFolder
from orchestration.settings.config import load_config
from rollout_server.arrays import TokenIds
from rollout_server.types import Completion, EpisodeTurn, FinishReason, Fork
from tests.orchestration.fakes import record_of
from tests.orchestration.page.browser import Page, opened

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = "</script><img src=x onerror=\"document.title='taken'\">\u2028&amp; ümläut 数"
STEPS = 6
ALARM = {"kind": "alarm", "name": "one_shape", "step": 2, "sentence": "a word is paid", "evidence": {"share": 0.5}}
ALARM |= {"examples": ["2/1/1"]}


def write_run(path: Path, *, finished: bool = True, gain: float = 0.1) -> Path:
    folder = RunFolder.create(load_config("tiny", [f"run_dir={path}"]))
    names = ("gsm8k_format", "gsm8k_correctness")
    for step in range(1, STEPS + 1):
        groups = [group(step, index) for index in range(4)]
        row = {"step": step, "reward_mean": gain * step, "reward_std": 0.5, "num_groups": 4, "entropy": None}
        row |= {"rollout_tokens_per_s": 1000.0 * step, "generation_s": 1.0, "learning_s": 2.0, "accuracy": gain * step}
        row |= {f"reward_{name}_mean": gain * step for name in names}
        folder.append_metrics(row)
        prompts = {g.prompt_id: f"examples\nWhat is {g.prompt_id}?" for g in groups}
        given = {
            g.prompt_id: json.dumps({"reference": {}, "metadata": {"difficulty": i % 2}}) for i, g in enumerate(groups)
        }
        record = replace(record_of(step, groups, prompts, names), references=given)
        folder.write_table(replace(record, update=replace(record.update, log_ratios=ratios(groups))))
    folder.append_event({"kind": "evaluation", "step": 3, "accuracies": {"strict": 0.5}})
    for _ in range(2):  # as of a step that was made again
        folder.append_event(ALARM)
    (path / "adapter").mkdir()
    Tokenizer(WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?")).save(str(path / "adapter" / "tokenizer.json"))
    if finished:
        difference = {"estimate": gain, "low": gain / 2, "high": gain * 1.5}
        accuracy = {"before": 0.1, "after": 0.1 + gain, "difference": difference, "num_problems": 50}
        folder.write_summary({"status": "finished", "steps": STEPS, "accuracy": {"strict": accuracy}, "wall_s": 61.0})
    folder.close()
    return path


def ratios(groups: list[ScoredGroup]) -> tuple[tuple[LogRatios | None, ...], ...]:
    """Nothing was learned from the first group."""
    return tuple(
        tuple(
            LogRatios((300, UNKNOWN, 0)) if member.completion.turns else LogRatios((0, -800))
            for member in group.members
        )
        if index
        else (None,) * len(group.members)
        for index, group in enumerate(groups)
    )


def group(step: int, index: int) -> ScoredGroup:
    def member(number: int) -> ScoredCompletion:
        text = {(0, 0): NASTY, (1, 1): "ab"}.get((index, number), f"answer {step} {index} {number}")
        completion = Completion(
            prompt_id=f"{step}/{index}",
            token_ids=(1, 2),
            sampling_logprobs=(-1.0, -1.0),
            text=text,
            finish_reason=FinishReason.STOP,
            adapter_version=step - 1,
        )
        if (step, index, number) == (3, 2, 1):
            completion = played(completion)
        right = None if number == 3 else float(number == 2)
        return ScoredCompletion(completion=completion, rewards=(1.0, right), total=None if right is None else 1 + right)

    members = tuple(member(number) for number in range(4))
    return ScoredGroup(prompt_id=f"{step}/{index}", prompt_token_ids=(1,), members=members)


def played(completion: Completion) -> Completion:
    """As an episode of two turns, the second behind a history that was rewritten."""
    turn = EpisodeTurn(start=0, stop=2, text="ab", finish_reason=FinishReason.STOP, adapter_version=2)
    return replace(
        completion,
        token_ids=(1, 2, 1),
        sampling_logprobs=(-1.0, -1.0, -0.01),
        turns=(
            replace(turn, observation="a <b>wall</b>"),
            replace(turn, start=2, stop=3, text="a", finish_reason=FinishReason.LENGTH, reward=0.25),
        ),
        forks=(Fork(start=2, prompt_token_ids=TokenIds((1, 2))),),
    )


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(html)
    return parser.found


def test_a_page_needs_nothing_else_and_shows_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    path = run / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    html = path.read_text()
    links = [value for _, a in elements(html) for name in ("src", "href") if (value := a.get(name)) is not None]
    assert links == ["#step=2", "#id=2/1/1"]
    assert "@import" not in html
    assert not re.search(r"url\(", html)
    for told in (
        "10.0 % → 20.0 %",
        "+10.0 points [+5.0, +15.0]",
        "finished",
        "Tokens a second",
        "All 96",
        "Reward by difficulty: run",
    ):
        assert told in html
    assert "Entropy" not in html  # no figure of it, no chart
    assert sum(tag == "img" for tag, _ in elements(html)) == 0


def test_runs_are_compared(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "first"), write_run(tmp_path / "second", gain=0.3)]
    out = tmp_path / "both.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    html = out.read_text()
    assert "second gained +20.0 points more than first by the strict rule [+4.2, +35.8]" in html
    legends = re.findall(r'<span class="(c\d[ d\d]*)">(\w+) reward_gsm8k_format_mean', html)
    assert legends == [("c0", "first"), ("c0 d1", "second")]


def test_a_run_under_way_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "rew')  # half a line
    html = render([read_run(run, most_completions=10)], refresh_s=5)
    assert "under way, 6 of" in html
    assert 'http-equiv="refresh" content="5"' in html
    assert "The latest 10 of 96" in html


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: run / "nothing", "is not a run's folder"),
        (lambda run: (run / "metrics.jsonl").write_text("no json\n") and run, "line 1 of {run}/metrics.jsonl"),
        (lambda run: (run / "metrics.jsonl").write_text("null\n") and run, "line 1 of {run}/metrics.jsonl"),
        (lambda run: (run / "metrics.jsonl").write_text('{"loss": 1}\n') and run, "'step' is None"),
        (lambda run: (run / "events.jsonl").write_text("{}\n[]\n") and run, "line 1 of {run}/events.jsonl"),
        (lambda run: (run / "summary.json").write_text("[]") and run, "{run}/summary.json"),
        (lambda run: (run / "config.yaml").write_text("a: [") and run, "{run}/config.yaml"),
        (lambda run: (run / "config.yaml").write_text("\n") and run, "{run}/config.yaml"),
        (lambda run: (run / "completions" / "step-000002.parquet").write_bytes(b"x") and run, "step-000002.parquet"),
    ],
)
def test_what_is_no_run_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, message: str
) -> None:
    path = make(write_run(tmp_path / "run"))  # type: ignore[operator]
    assert main(["report", str(path)]) == 2
    error = capsys.readouterr().err
    assert message.format(run=path) in error
    assert error.count("\n") == 1


def test_events_of_other_versions_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"kind": "alarm", "step": 3}\n{"kind": "evaluation", "step": 4}\n{"kind": "later"}\n')
    assert [alarm["name"] for alarm in read_run(run, most_completions=0).alarms] == ["one_shape"]


def test_the_time_of_a_run_that_has_ended_has_its_evaluations(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"), most_completions=0)
    ended = replace(run, summary={**run.summary, "seconds": {"generation": 6.0, "learning": 12.0, "evaluation": 2.0}})
    assert "learning 67 %" in render([run])
    assert "learning 60 %" in render([ended])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3.0, 97.0, [0, 20, 40, 60, 80, 100]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (0.0, 0.0, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (100.0, 100.0, [0, 20, 40, 60, 80, 100]),
        (2e-6, 4e-6, [2e-6, 2.5e-6, 3e-6, 3.5e-6, 4e-6]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)
    assert ticks(3.0, 3.0, whole=True) == [3.0]


def test_labels_tell_neighbours_apart() -> None:
    found = ticks(0.9999, 1.0002)
    assert len({label(value, found[1] - found[0]) for value in found}) == len(found)
    assert [label(12_500.0), label(3.0), label(0.0), label(2e-6), label(1.5e9)] == ["12.5k", "3", "0", "2e-6", "1.5G"]


def test_lines_stay_inside_their_chart() -> None:
    html = chart("x", [Line(name="a<b", points=[(1, -5.0), (2, 7.0)]), Line(name="none", points=[])])
    assert "a&lt;b" in html
    assert "none" not in html
    points = re.findall(r'polyline[^>]*points="([^"]*)"', html)
    ys = [float(pair.split(",")[1]) for pair in points[0].split()]
    assert ys == sorted(ys, reverse=True)
    assert 0 < min(ys) < max(ys) < 220
    assert chart("empty", []) == ""


def test_nothing_is_drawn_over_a_gap_and_a_name_stands_once() -> None:
    points = [(1.0, 5.0), (2.0, 7.0), (9.0, 6.0), (10.0, 6.0), (20.0, 6.0)]
    html = chart("x", [Line(name="a", points=points, gap=1.5), Line(name="a", points=points[:2])])
    assert [len(found.split()) for found in re.findall(r'polyline[^>]*points="([^"]*)"', html)] == [2, 2, 2]
    assert html.count("<circle") == 1
    assert html.count('<span class="c0">a</span>') == 1


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> object:
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    folder = tmp_path_factory.mktemp("page")
    runs = [read_run(write_run(folder / name), most_completions=1000) for name in ("one", "two")]
    (folder / "page.html").write_text(render(runs))
    with opened(CHROMIUM, (folder / "page.html").as_uri()) as page:
        yield page


def choose(page: Page, name: str, value: str) -> str:
    """Fills in a field of the filter and gives what is said of the result."""
    page.evaluate(
        f"{{const f = document.getElementById('filter'); f.elements['{name}'].value = '{value}';"
        f"f.elements['{name}'].dispatchEvent(new Event('input', {{bubbles: true}}))}}"
    )
    return str(page.evaluate("document.querySelector('output').textContent"))


def test_the_browser_of_completions(page: Page) -> None:
    cards = "document.querySelectorAll('article').length"
    assert page.evaluate("document.title") == "one, two"  # nothing of a completion was run
    assert page.evaluate(cards) == 20
    page.evaluate("document.getElementById('next').click()")
    assert choose(page, "step", "2") == "1 to 20 of 32"
    assert choose(page, "paid", "most") == "1 to 8 of 8"
    assert page.evaluate("[...document.querySelectorAll('article')].every(a => a.classList.contains('most'))")
    assert choose(page, "paid", "null") == "1 to 8 of 8"
    assert choose(page, "paid", "") == "1 to 20 of 32"
    assert choose(page, "answer", "true") == "1 to 8 of 8"
    assert page.evaluate("[...document.querySelectorAll('article > header')].every(h => / right /.test(h.textContent))")
    assert choose(page, "answer", "false") == "1 to 16 of 16"  # what could not be scored is neither
    assert choose(page, "answer", "") == "1 to 20 of 32"
    assert choose(page, "text", "onerror") == "1 to 2 of 2"
    assert page.evaluate("document.querySelector('article > pre').textContent") == NASTY
    assert choose(page, "text", "not there") == "none"
    assert choose(page, "text", "") == choose(page, "text", "") == "1 to 20 of 32"
    assert choose(page, "step", "") == "1 to 20 of 192"


def test_an_alarm_leads_to_its_completions_and_their_tokens(page: Page) -> None:
    assert page.evaluate("document.querySelectorAll('a[href=\"#id=2/1/1\"]').length") == 2  # one a run
    page.evaluate("{location.hash = '#id=2/1/1'; window.dispatchEvent(new Event('hashchange'))}")
    assert page.evaluate("document.querySelectorAll('article').length") == 2
    tokens = "[...document.querySelector('article > pre').children].map(one => one.textContent + one.className).join()"
    assert page.evaluate(tokens) == "ak,bk down4"
    assert "up to 0.50" in page.evaluate("document.getElementById('legend').textContent")
    page.evaluate("document.querySelectorAll('article > pre > span')[1].click()")
    said = "document.getElementById('told').textContent"
    assert page.evaluate(said) == '"b": ratio 0.449 · sampler\'s probability 0.3 or more'
    page.evaluate("document.body.click()")
    assert page.evaluate("document.getElementById('told').hidden")
    assert choose(page, "colour", "probability") == "1 to 2 of 2"  # the same are shown
    assert page.evaluate(tokens) == "ak k3,bk k3"
    assert choose(page, "colour", "ratio") == "1 to 2 of 2"
    page.evaluate("{location.hash = ''}")
    assert choose(page, "text", "") == "1 to 20 of 192"


def test_an_episode_is_shown_turn_by_turn(page: Page) -> None:
    page.evaluate("{location.hash = '#id=3/2/1'; window.dispatchEvent(new Event('hashchange'))}")
    shown = page.evaluate("[...document.querySelector('article').children].slice(2).map(one => one.textContent)")
    assert shown == [
        "turn 1 · 2 tokens · stop · version 2 · paid nothing",
        "ab",
        "a <b>wall</b>",
        "the template rewrote what came before: a sequence of its own from here",
        "turn 2 · 1 tokens · length · version 2 · paid 0.25",
        "a",
    ]
    assert page.evaluate("document.querySelector('pre.given').textContent") == "a <b>wall</b>"
    tokens = "[...document.querySelectorAll('article:first-child > pre > span')].map(one => one.className).join()"
    assert page.evaluate(tokens) == "k up3,k,k"
    titles = page.evaluate("[...document.querySelectorAll('article:first-child > pre > span')].map(one => one.title)")
    assert [title.split(" · ")[0] for title in titles] == ["ratio 1.35", "not learned from", "ratio 1"]
    page.evaluate("{location.hash = ''}")
    assert choose(page, "text", "") == "1 to 20 of 192"


def test_tokens_of_a_tokenizer_that_drops_leading_blanks_keep_theirs() -> None:
    vocabulary = {token: index for index, token in enumerate(["<unk>", "▁", *"abc", "▁b"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "b")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    ids = tokenizer.encode("b a bc").ids
    pieces = pieces_by(tokenizer)
    assert pieces(ids) == [" b", " ", "a", " b", "c"]
    logprobs = [-0.1] * len(ids)
    assert cut(" b a bc", ids, logprobs, None, pieces)["l"] == [2, 1, 1, 2, 1]
    assert cut("b a bc", ids, logprobs, None, pieces)["l"] == [1, 1, 1, 2, 1]


def test_a_run_under_way_is_cut_by_its_base_models_tokenizer(tmp_path: Path) -> None:
    run, base = tmp_path / "run", tmp_path / "base"
    for folder in (run / "adapter", base):
        folder.mkdir(parents=True)
    assert pieces_of(run) is None
    Tokenizer(WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?")).save(str(base / "tokenizer.json"))
    (run / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    pieces = pieces_of(run)
    assert pieces is not None
    assert pieces([1, 2]) == ["a", "b"]


def test_tokens_that_do_not_make_the_text_are_not_coloured() -> None:
    pieces, nan = {1: "a", 2: "b"}, float("nan")
    cutter: Pieces = lambda ids: [pieces[one] for one in ids]  # noqa: E731
    assert cut("ab", [1, 2], [-0.01, nan], None, cutter) == {"l": [1, 1], "k": "9-"}
    assert cut("ab", [1, 2], [-0.01, -1.0], [nan, nan], cutter) == {"l": [1, 1], "k": "93"}
    assert cut("ab", [1, 2], [-0.01, -1.0], [-9.0, 0.001], cutter)["o"] == [-900, 0]
    assert cut("a b", [1, 2], [-0.01, -9.0], None, cutter) == {}


@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    page.resize(width, 800)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelectorAll('svg').length") >= 4
