"""Correct items of every reward on a machine that others keep busy: none may be lost, none scored wrong.

`python -m tests.reward_service.pool.busy_machine 500 10` scores 500 of each beside 10 busy processes and prints a line
a reward; the exit code is 1 if anything was lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from reward_service.child import start_in_subprocess
from reward_service.settings import ServiceSettings

BATCH = 50


def items_of(name: str, number: int) -> list[dict[str, Any]]:
    """So many different items of a reward, all of which have its highest score."""
    made = {
        "gsm8k_format": lambda n: (f"Work.\n#### The final answer is {n}", None),
        "gsm8k_correctness": lambda n: (f"#### The final answer is {n}", {"final_answer": str(n)}),
        "last_number": lambda n: (f"It is {n}.", {"final_answer": n}),
        "math": lambda n: (rf"So \boxed{{\frac{{{n}}}{{7}} + \sqrt{{{n}}}}}", {"final_answer": rf"\sqrt{{{n}}}+{n}/7"}),
        "symbolic": lambda n: (rf"\boxed{{(x+{n})^2}}", {"final_answer": f"x^2 + {2 * n}*x + {n * n}"}),
        "exact": lambda n: (f"#### The final answer is word{n}", {"final_answer": f"word{n}"}),
        "choice": lambda n: (f"{n}.\n#### The final answer is {'ABCD'[n % 4]}", {"final_answer": "ABCD"[n % 4]}),
        "regex": lambda n: (f"abc{n}", {"pattern": rf"abc{n}"}),
        "json_schema": lambda n: (json.dumps({"a": n}), {"schema": {"type": "object", "required": ["a"]}}),
        "length": lambda n: ("short " * (n % 7 + 1), None),
        "repetition": lambda n: (f"no word of {n} is here twice", None),
        "code": lambda n: (
            f"```python\ndef f(x):\n    return x + {n}\n```",
            {"asserts": [f"assert f(1) == {n + 1}"], "entry_point": "f"},
        ),
    }[name]
    pairs = [made(n) for n in range(1, number + 1)]
    return [{"id": str(n), "completion": text, "reference": reference} for n, (text, reference) in enumerate(pairs)]


BEST = {"gsm8k_format": 0.5, "length": 0.0, "repetition": 0.0}
"""The highest score where it is not 1."""
NAMES = (
    "gsm8k_format",
    "gsm8k_correctness",
    "last_number",
    "math",
    "symbolic",
    "exact",
    "choice",
    "regex",
    "json_schema",
    "length",
    "repetition",
    "code",
)


@contextmanager
def busy(num_processes: int) -> Iterator[None]:
    """Keeps the processors busy with so many processes."""
    spinning = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(num_processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
        for process in spinning:
            process.wait()


def score_all(url: str, name: str, number: int) -> Counter[str]:
    """What became of them: right, wrong, or the reason why there is no score."""
    found: Counter[str] = Counter()
    items = items_of(name, number)
    for start in range(0, number, BATCH):
        body = {"rewards": [{"name": name}], "items": items[start : start + BATCH]}
        answer = httpx.post(f"{url}/v1/score", json=body, timeout=700, trust_env=False)
        answer.raise_for_status()
        for result in answer.json()["results"]:
            got = result["rewards"][name]
            right = got["score"] == BEST.get(name, 1.0)
            found["right" if right else "wrong" if got["score"] is not None else got["reason"]] += 1
    return found


def main(number: int, num_busy: int, names: tuple[str, ...]) -> int:
    """Prints what became of them, and gives the exit code."""
    num_lost = 0
    with tempfile.TemporaryDirectory() as folder, busy(num_busy):
        log = Path(folder) / "log"
        with start_in_subprocess(ServiceSettings(port=0), log_path=log, timeout_s=300) as service:
            for name in names:
                began = time.monotonic()
                found = score_all(service.url, name, number)
                num_lost += number - found["right"]
                took_s = round(time.monotonic() - began, 1)
                print(json.dumps({"reward": name, "tried": number, **found, "took_s": took_s}), flush=True)
            restarted = httpx.get(f"{service.url}/metrics", timeout=60, trust_env=False).text
            print(*(line for line in restarted.splitlines() if line.startswith("reward_workers_restarted")), sep="\n")
    return int(num_lost > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:]) or NAMES))
