import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from orchestration.report import Reporter, make_reporter
from orchestration.report.live import LiveReporter
from orchestration.report.outcome import read_outcome
from orchestration.report.plain import EVALUATION_METRICS, LINE_METRICS, PlainReporter, metric_regex
from orchestration.report.text import duration, head, number, one_line, percent, sanitise, shares, sparkline, tail
from orchestration.report.view import ViewState, render
from orchestration.settings.config import RunConfig

HOSTILE = (
    "[red]x[/red] \x1b[2J\x1b]0;owned\x07 \u202egnp.exe\x9b31m\x7f\u2028 reward_mean=99 \ud800" + "y" * 5000 + "\n" * 50
)
ROW = {
    "step": 3,
    "reward_mean": 0.8125,
    "reward_std": 0.4,
    "accuracy": 0.5,
    "response_tokens_mean": 43.4,
    "response_tokens_max": 96,
    "truncated_fraction": 0.03,
    "rollout_tokens_per_s": 123.4,
    "learner_tokens_per_s": 2512.0,
    "kl_to_sampler": 1.2e-5,
    "flat_group_fraction": 0.25,
    "policy_age_mean": 0.0,
    "grad_norm": float("nan"),
    "entropy": None,
    "step_s": 20.3,
    "generation_s": 12.1,
    "learning_s": 8.0,
    "other_s": 0.2,
}
SUMMARY = {
    "status": "finished",
    "recipe": "arithmetic",
    "run_dir": "runs/a run",
    "steps": 40,
    "tokens": {"generated": 123_456, "learned": 234_567, "distinct": 98_765},
    "seconds": {"learning": 200.0, "generation": 390.0, "scoring": 0.0, "other": 10.0},
    "accuracy": {
        "strict": {
            "before": 0.19,
            "after": 0.52,
            "difference": {"estimate": 0.33, "low": 0.251, "high": 0.41},
            "num_problems": 200,
        },
        "lenient": {"before": 0.235, "after": None},
    },
}


def tell_a_run(reporter: Reporter) -> None:
    reporter.start(RunConfig(max_steps=40), "2 CPU cores, 24 GiB")
    reporter.phase("evaluation", "before", 200)
    reporter.progress(200, 200)
    reporter.evaluation("before", {"strict": 0.19, "lenient": 0.235}, 200)
    reporter.phase("generation", "step 3", 8)
    reporter.progress(5, 8)
    reporter.phase("learning", "step 3")
    reporter.step(ROW)
    reporter.example("Few shots\n" * 100 + "What is 2+2?", HOSTILE, {"gsm8k_format": 0.5, "gsm8k_correctness": None})
    reporter.note("warning", "all groups are flat [bold]")
    reporter.finish(SUMMARY)
    reporter.close()
    reporter.close()


# --- text


def test_sanitised_text_has_no_way_to_steer_a_terminal() -> None:
    clean = sanitise(HOSTILE)
    assert all(char == "\n" or char.isprintable() for char in clean)
    assert clean.startswith("[red]x[/red] ␛[2J␛]0;owned␇ \ufffdgnp.exe\ufffd31m\ufffd\ufffd reward_mean=99 \ufffdyy")
    assert sanitise("a\tb\r\nc\rd") == "a  b\nc␍d"
    assert sanitise("naïve 漢字 🙂 \u00a0½") == "naïve 漢字 🙂 \u00a0½"
    assert one_line(" a \n\n b\t") == "a b"


def test_head_and_tail_say_what_is_missing() -> None:
    assert head("short", max_chars=10, max_lines=2) == "short"
    assert head("abcdef", max_chars=4, max_lines=2) == "abcd… (2 more characters)"
    assert head("a\nb\nc", max_chars=10, max_lines=2) == "a\nb… (2 more characters)"
    assert tail("abcdef", max_chars=2, max_lines=1) == "…ef"
    assert tail("a\nb\nc", max_chars=10, max_lines=2) == "…b\nc"
    assert tail("abc", max_chars=10, max_lines=2) == "abc"


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 8, ""),
        ([0.0, 1.0], 8, "▁█"),
        ([0.0, 0.5, 1.0], 8, "▁▅█"),
        ([1.0, 1.0], 8, "▄▄"),
        ([0.0, None, 1.0], 8, "▁ █"),
        ([float("nan"), None], 8, ""),
        ([0.0, 0.0, 1.0, 1.0], 2, "▁█"),
        ([0.0, 1.0], 0, ""),
    ],
)
def test_sparkline(values: list[float | None], width: int, expected: str) -> None:
    assert sparkline(values, width) == expected


def test_numbers() -> None:
    assert [duration(s) for s in (0.04, 9.96, 59.4, 59.6, 184, 7500)] == [
        "0.0 s", "10 s", "59 s", "1m 00s", "3m 04s", "2h 05m",
    ]  # fmt: skip
    assert [number(x) for x in (None, float("nan"), 0.00123456, 43.44, 1234567)] == [
        "–", "–", "0.00123", "43.4", "1,234,567",
    ]  # fmt: skip
    assert [percent(x) for x in (None, 0.525, 1)] == ["–", "52 %", "100 %"]
    assert shares({"a": 1.0, "b": 3.0, "c": 0.0}, at_least=0.01) == [("b", 0.75), ("a", 0.25)]
    assert shares({}) == []


# --- plain lines


def plain_lines(encoding: str = "utf-8") -> list[str]:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    tell_a_run(PlainReporter(stream, time_of_day=lambda: "12:00:00"))
    return raw.getvalue().decode(encoding).splitlines()


def test_plain_is_one_readable_line_per_event() -> None:
    lines = plain_lines()
    assert all(re.match(r"12:00:00 \S", line) for line in lines)
    assert all(char.isprintable() for line in lines for char in line)
    text = "\n".join(lines)
    assert "start recipe=arithmetic model=smollm2-135m-instruct seed=0 steps=40" in text
    assert "evaluation before eval_strict_accuracy=0.1900 eval_lenient_accuracy=0.2350 problems=200" in text
    assert "step 3/40 reward_mean=0.8125 " in text
    assert "warning: all groups are flat [bold]" in text
    assert "strict accuracy of 200 held-out problems 19.0 % → 52.0 %: +33.0 points [+25.1, +41.0]" in text
    assert "lenient accuracy of 200 held-out problems 23.5 % → –: not measured both before and after" in text
    assert "time 10m 00s: generation 65 %, learning 33 %, other 2 %" in text
    assert "rlvr eval --model smollm2-135m-instruct --adapter 'runs/a run'/adapter" in text


def test_plain_lines_go_to_a_stream_of_any_encoding() -> None:
    assert "19.0 % ? 52.0 %" in "\n".join(plain_lines("ascii"))


def test_a_log_on_a_full_disk_does_not_end_what_it_tells_of() -> None:
    full = open("/dev/full", "w")  # noqa: SIM115  # its closing is what is looked at
    PlainReporter(full).note("warning", "no room")
    with pytest.raises(OSError, match="No space left"):
        full.close()  # what it could not say is not forgotten


def test_metrics_are_found_in_the_lines_by_their_regular_expressions() -> None:
    lines = plain_lines()
    found = {
        name: [float(match[1]) for line in lines for match in re.finditer(metric_regex(name), line)]
        for name in (*LINE_METRICS, *EVALUATION_METRICS)
    }
    # one value for each known metric: nothing that a completion says is taken for one, nor is NaN or None
    assert {name: values for name, values in found.items() if values} == {
        **{name: [ROW[name]] for name in LINE_METRICS if ROW.get(name) is not None and name != "grad_norm"},
        "eval_strict_accuracy": [0.19],
        "eval_lenient_accuracy": [0.235],
    }


def test_a_long_phase_gives_signs_of_life_but_not_many() -> None:
    stream, clock = io.StringIO(), iter(range(0, 100_000, 10))
    reporter = PlainReporter(stream, now=lambda: float(next(clock)), time_of_day=lambda: "t")
    reporter.phase("generation", "step 1", 8)
    for done in range(1, 9):
        reporter.progress(done, 8)
        reporter.progress(done, 200)  # something else, behind it
    assert stream.getvalue().splitlines() == ["t generation step 1, 3 of 8", "t generation step 1, 6 of 8"]


def test_a_stopped_run_without_measurements_still_gets_a_report() -> None:
    accuracy = {"strict": {"before": None, "after": None}}
    summary = {"status": "failed", "reason": "why", "recipe": "copy", "run_dir": "runs/x", "steps": 2}
    outcome = read_outcome({**summary, "accuracy": accuracy}, RunConfig())
    assert outcome.headline == "copy failed after 2 steps: why"
    assert outcome.comparisons == ()
    assert outcome.next_commands[0] == ("go on from here", "rlvr train runs/x/config.yaml run_dir=runs/x")


# --- the live view


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_live_view_keeps_to_its_width(width: int) -> None:
    state = ViewState(started=0.0, max_steps=40, num_steps=3, phase="learning", phase_started=90.0, row=ROW)
    state.bar_phase, state.bar_done, state.bar_total = "generation", 5, 8
    state.rewards = [0.1 * i for i in range(100)]
    state.step_seconds.extend([20.0, 22.0])
    state.evaluations = [("before", {"strict": 0.19, "lenient": 0.2}), ("step 20", {"strict": 0.3, "lenient": 0.31})]
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(render(state, 100.0, width))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capture.get()).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 14
    text = " ".join(" ".join(lines).split())
    assert "0.81 ± 0.40" in text
    assert "3/40" in text
    if width >= 60:
        assert "13m 53s left" not in text  # 37 steps of 21 s are 12m 57s
        assert "12m 57s left" in text
        assert "strict 19.0 % → 30.0 % (step 20)" in text
        assert "generation 5/8" in text


@pytest.mark.parametrize("width", [60, 140])
def test_a_live_run_escapes_what_a_completion_holds(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=40, force_terminal=True, color_system=None, legacy_windows=False)
    tell_a_run(LiveReporter(console))
    output = stream.getvalue()
    assert "[red]x[/red] ␛[2J␛]0;owned␇" in output
    assert "\x1b[2J" not in output
    assert "\x1b]" not in output
    assert "all groups are flat [bold]" in output
    assert "+33.0 points [+25.1, +41.0]" in output
    # commands are for copying: whole on one line whatever the width
    assert (
        "  rlvr eval --model smollm2-135m-instruct --adapter 'runs/a run'/adapter --data 'runs/a run'/config.yaml\n"
        in output
    )
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")  # the cursor is shown again


# --- which one


class Stream(io.StringIO):
    encoding = "utf-8"

    def __init__(self, terminal: bool, encoding: str = "utf-8") -> None:
        super().__init__()
        self._terminal = terminal
        self.encoding = encoding

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("terminal", "term", "encoding", "kind"),
    [
        (True, "xterm-256color", "utf-8", LiveReporter),
        (True, "dumb", "utf-8", PlainReporter),
        (True, None, "utf-8", PlainReporter),
        (True, "xterm", "ascii", PlainReporter),
        (False, "xterm", "utf-8", PlainReporter),
    ],
)
def test_the_reporter_fits_the_stream(
    terminal: bool, term: str | None, encoding: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    assert type(make_reporter(Stream(terminal, encoding))) is kind


def test_no_color_is_a_live_view_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Stream(terminal=True)
    tell_a_run(make_reporter(stream))
    codes = {int(code) for codes in re.findall(r"\x1b\[([0-9;]+)m", stream.getvalue()) for code in codes.split(";")}
    assert codes <= {0, 1, 2}  # reset, bold, dim


def test_ctrl_c_gives_the_terminal_back(tmp_path: Path) -> None:
    """For real: a process on a pseudo-terminal whose loop forgets to close the reporter."""
    script = (
        "import time\n"
        "from orchestration.settings.config import RunConfig\n"
        "from orchestration.report import make_reporter\n"
        "reporter = make_reporter()\n"
        "reporter.start(RunConfig(), 'here')\n"
        "reporter.phase('generation', 'step 1', 8)\n"
        "time.sleep(300)\n"
    )
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=terminal, stderr=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"}
    )
    os.close(terminal)
    output, deadline, interrupted = b"", time.monotonic() + 120, False
    while time.monotonic() < deadline:
        try:
            output += os.read(controller, 4096)
        except OSError:  # the process has closed the terminal
            break
        if not interrupted and b"generation" in output:
            process.send_signal(signal.SIGINT)
            interrupted = True
    os.close(controller)
    assert process.wait(timeout=60) != 0
    assert output.count(b"\x1b[?25l") == 1
    assert output.rindex(b"\x1b[?25h") > output.rindex(b"\x1b[?25l")
