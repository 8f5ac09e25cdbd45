"""How long a page of 10,000 completions takes to open: `python -m tests.orchestration.page.opens [NUMBER]` says it."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from pathlib import Path

from orchestration.page.data import Run
from orchestration.page.page import render
from orchestration.page.tokens import cut
from tests.orchestration.page.browser import opened
from tests.waiting import until

WORDS = [" The", " answer", " is", " 4", "2", " +", " so", " each", ".", "\n"]
LOADED_MS = "Math.round(performance.getEntriesByType('navigation')[0].loadEventEnd)"


def completion(number: int, draw: random.Random, num_tokens: int = 100) -> dict[str, object]:
    """One as a page has it, of tokens that each have a probability and a ratio."""
    token_ids = draw.choices(range(len(WORDS)), k=num_tokens)
    text = "".join(WORDS[one] for one in token_ids)
    logprobs, ratios = ([draw.gauss(mean, 0.1) for _ in token_ids] for mean in (-0.5, 0.0))
    row = {
        "step": 1 + number // 64,
        "completion_id": f"{number}/0/0",
        "prompt_id": f"p{number // 8}",
        "prompt": f"{number // 8} {600 * 'Q'}",
    }
    row |= {
        "completion": text,
        "reward_right": 1.0,
        "total": float(number % 2),
        "advantage": 0.5,
        "num_tokens": num_tokens,
    }
    return row | {"cut": cut(text, token_ids, logprobs, ratios, lambda ids: [WORDS[one] for one in ids])}


def main(number: int) -> None:
    """Prints the page's size, and the time of five openings from the address to the end of its scripts."""
    draw = random.Random(0)
    rows = [completion(one, draw) for one in range(number)]
    run = Run(path=Path("run"), config={}, rows=(), summary={}, completions=rows, num_completions=number)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "no chromium on the PATH"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "page.html")
        size = path.write_text(render([run]))
        found = []
        for _ in range(5):
            with opened(chromium, path.as_uri()) as page:
                until(lambda page=page: page.evaluate(LOADED_MS) > 0, 60)  # type: ignore[misc]
                found.append(page.evaluate(LOADED_MS))
                assert page.evaluate("document.querySelectorAll('article').length") == min(20, number)
    print(f"{number:,} completions of 100 tokens, {size / 1e6:.1f} MB: {found} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
