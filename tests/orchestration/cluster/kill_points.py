"""By hand (`make kills`): one run undisturbed, one killed again and again, and every bit of the two compared.

    python -m tests.orchestration.cluster.kill_points --points 20 --seed 1

The driver is killed (SIGKILL), or asked to stop (SIGTERM, one time in `--orderly`), at a random moment of its start, or
after a random step: in an evaluation, in generation, scoring, update, publish or checkpoint. What the two runs must
share: each step's groups, rewards, advantages and figures, and the adapter after it. What is asked to stop has to have
ended within 20 s, and to have told of nothing that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from orchestration.run.ledger.folder import read_status
from orchestration.run.ledger.records import StepRecord, read_record, recorded_steps

SETTINGS = ("tiny", "dashboard=false", "data.num_eval=8", "save_every=2", "eval_every=3", "keep_records=1000")


def compared(record: StepRecord) -> StepRecord:
    """What two runs must share of a step: all but times."""
    times = {name: 0.0 for name in record.row if name.endswith(("_s", "_per_s"))}
    return replace(
        record,
        row=record.row | times,
        update=replace(record.update, seconds=0.0),
        state=replace(record.state, seconds={}),
    )


def differing_steps(first: Path, second: Path) -> list[int]:
    """Steps that both recorded and that are not the same, bit for bit."""
    both = sorted(set(recorded_steps(first)) & set(recorded_steps(second)))
    return [step for step in both if compared(read_record(first, step)) != compared(read_record(second, step))]


@contextmanager
def training(run: Path, words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """`rlvr train`; what it started ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="kill-", dir="/tmp"))
    environment: Mapping[str, str] = {**os.environ, "RAY_TMPDIR": str(folder), "TMPDIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestration", "train", *words, f"run_dir={run}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_all_of(folder)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def end_all_of(folder: Path) -> None:
    """Kill the processes whose temporary files lie in the folder: a killed driver leaves Ray's behind."""
    import psutil

    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_TMPDIR") == str(folder):
                process.kill()
        except psutil.Error:
            continue


ORDERLY_S = 20.0
"""What a run that is asked to stop may take to its end."""


def is_step(line: str) -> bool:
    """Whether the line tells of a step that is done, as in "12:00:01 step 3 of 12 …"."""
    return line.split()[1:2] == ["step"]


def disturbed_once(run: Path, words: Sequence[str], chance: random.Random, orderly: float) -> str:
    """Start, send a signal at a random moment, and say where that was; or that the run had finished.

    One signal in five falls into the start; the others into the one or two steps after one to three of this start's
    own, anywhere between generation and checkpoint: most of a short run's lines, and of its time, are its start."""
    number = signal.SIGTERM if chance.random() < orderly else signal.SIGKILL
    starting = chance.random() < 0.2
    wanted, share = chance.randint(1, 9) if starting else chance.randint(1, 3), chance.uniform(0.0, 1.5)
    with training(run, words) as process:
        heard: list[str] = []
        moments: list[float] = []
        assert process.stdout is not None
        for line in process.stdout:
            heard.append(line.strip())
            if starting or is_step(line):
                moments.append(time.monotonic())
            if len(moments) == wanted:
                break
        else:
            return "finished" if process.wait() == 0 else f"FAILED: {heard[-5:]}"
        rest: list[str] = []
        reading = threading.Thread(target=lambda: rest.extend(process.stdout or ()), daemon=True)
        reading.start()
        after = share * (1.0 if starting or wanted == 1 else moments[-1] - moments[-2])
        time.sleep(after)
        process.send_signal(number)
        asked = time.monotonic()
        code = process.wait()
        took = time.monotonic() - asked
        if number == signal.SIGTERM:
            reading.join()
            if code not in (0, 130) or took > ORDERLY_S or any("Traceback" in line for line in rest):
                return f"FAILED: ended with {code} {took:.1f} s after SIGTERM: {heard[-5:]} {rest}"
    rows = len((run / "metrics.jsonl").read_bytes().splitlines()) if (run / "metrics.jsonl").is_file() else 0
    return (
        f"{number.name} {after:.2f} s after {heard[-1][:60]!r}, ended in {took:.1f} s: {rows} rows, "
        f"records up to {max(recorded_steps(run), default=0)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--orderly", type=float, default=0.25, help="share of SIGTERM among the signals")
    parser.add_argument("--folder", type=Path, default=None, help="goes on with what an earlier call left there")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further start after so long")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="rlvr-kills-"))
    words = (*SETTINGS, f"max_steps={arguments.steps}")
    undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
    if not (undisturbed / "summary.json").is_file():
        with training(undisturbed, words) as process:
            output, _ = process.communicate()
            assert process.returncode == 0, output
    chance, points, rounds, began = random.Random(arguments.seed), 0, 0, time.monotonic()
    target = disturbed / "0"
    while points < arguments.points and time.monotonic() - began < arguments.seconds:
        while read_status(disturbed / str(rounds)) == "finished":
            rounds += 1
        target = disturbed / str(rounds)
        told = disturbed_once(target, words, chance, arguments.orderly)
        if told == "finished":
            print(told, flush=True)
        elif told.startswith("FAILED"):
            print(told)
            return 1
        else:
            points += 1
            print(f"{points}: {told}", flush=True)
        if wrong := differing_steps(undisturbed, target):
            print(f"steps {wrong} are not those of the undisturbed run: {target}")
            return 1
    kept = [recorded_steps(path) for path in sorted(disturbed.iterdir())]
    print(
        json.dumps({"points": points, "runs": len(kept), "steps_compared": sum(map(len, kept)), "steps_differing": 0})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
