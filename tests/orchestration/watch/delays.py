"""How late each alarm is, and how often it is false: `python -m tests.orchestration.watch.delays` prints the tables."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from statistics import median

from orchestration.watch.watch import NAMES, Watch
from tests.orchestration.watch.simulated import BEGINS, STEPS, Process, facts, healthy, held_out, planted

STRENGTHS = {"strong": 6.0, "middling": 25.0, "weak": 60.0}
"""Steps over which what goes wrong grows."""
EVALUATE_EVERY = 10


def alarms_of(process: Process, seed: int) -> Iterator[tuple[int, str]]:
    """(step, name) of every alarm of a run, in order."""
    watch = Watch()
    watch.evaluation(held_out(process, seed, 0))
    for step in facts(process, seed):
        yield from ((step.step, alarm.name) for alarm in watch.step(step))
        if step.step % EVALUATE_EVERY == 0:
            yield from ((step.step, alarm.name) for alarm in watch.evaluation(held_out(process, seed, step.step)))


def delay(process: Process, seed: int, name: str) -> int | None:
    """Steps from the beginning of what is wrong to its alarm; None: never told."""
    return next((step - BEGINS for step, told in alarms_of(process, seed) if told == name and step >= BEGINS), None)


def main(num_healthy: int, num_planted: int) -> None:
    """Prints both tables in Markdown."""
    false = [Counter({name for _, name in alarms_of(healthy(seed), seed)}) for seed in range(num_healthy)]
    print(f"{sum(map(bool, false))} of {num_healthy} healthy runs of {STEPS} steps set off an alarm\n")
    print("| alarm | false |\n|---|---|")
    for name in NAMES:
        print(f"| {name} | {sum(one[name] for one in false)} |")
    print(f"\n| what goes wrong | alarm | {' | '.join(STRENGTHS)} |\n|---|---|{'---|' * len(STRENGTHS)}")
    for wrong in planted(1.0):
        cells, alarm = [], ""
        for steps in STRENGTHS.values():
            alarm, plant = planted(steps)[wrong]
            found = [delay(plant(healthy(seed)), seed, alarm) for seed in range(num_planted)]
            known = [one for one in found if one is not None]
            cells.append(f"{median(known):g} ({len(known)}/{num_planted})" if known else f"never (0/{num_planted})")
        print(f"| {wrong} | {alarm} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or ("100", "10")))
