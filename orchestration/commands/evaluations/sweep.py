"""`rlvr sweep`: every run of a grid trained and evaluated, what is done left alone, and all of them in one chart."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestration.errors import ConfigError, MachineError
from orchestration.evals.answers import Answer
from orchestration.evals.store import RESULTS_FILE, read_answers
from orchestration.machine.facts import collect
from orchestration.machine.needs import needs_of
from orchestration.run.ledger.names import ADAPTER_FOLDER, CONFIG_FILE, SUMMARY_FILE
from orchestration.settings.config import RunConfig, load_config
from orchestration.storage.atomic import atomic_write
from orchestration.sweep.grid import Grid, Point
from orchestration.sweep.jobs import Command, Job, Jobs
from orchestration.sweep.outcome import INTERVALS, NOTE, Row, facts, rows, table

SWEEP_FILE: Final = "sweep.json"
TABLE_FILE: Final = "sweep.txt"
RULES: Final = ("strict", "lenient")
OWN: Final = ("eval_at_ends=false", "dashboard=false")
"""Settings of every run unless the words say otherwise: the sweep evaluates by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOptions:
    """A grid, and how it is worked through."""

    grid: Grid
    out: Path
    jobs: int | None = None
    """Runs at a time; None: as many as the machine has room for."""
    made_by: str = ""


def run_sweep(options: SweepOptions, tell: Callable[[str], None]) -> tuple[str, list[str]]:
    """Work through the grid; returns the table, and sentences about what failed.

    Raises:
        ConfigError: a run's settings are wrong, or the folder holds a sweep of something else. Nothing is started.
        KeyboardInterrupt: it was stopped; table and chart are of what is done.
    """
    configs = {point.name: _config(options, point) for point in options.grid.points}
    _take(options)
    jobs = [_job(options, point, configs[point.name]) for point in options.grid.points]
    at_once = options.jobs or room_for(next(iter(configs.values())))
    tell(f"{len(jobs)} runs, {at_once} at a time, in {options.out}")
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
    try:
        failed = Jobs(tell).run(jobs, at_once, lambda: _write_so_far(options, tell))
    finally:
        said = write_outcome(options, tell)
    return said, failed


def room_for(config: RunConfig) -> int:
    """How many runs at a time: on a machine without GPUs as its cores and memory allow, two cores a run. One where runs
    share GPUs or a cluster, whose room nobody can know for them: say --jobs there."""
    machine = collect()
    if machine.gpus or config.ray_address is not None:
        return 1
    needed = needs_of(config, num_gpus=0).likely_memory_bytes
    return max(1, min(machine.num_cores // 2, machine.available_memory_bytes // max(needed, 1)))


def write_outcome(options: SweepOptions, tell: Callable[[str], None]) -> str:
    """Write table, figures and charts of what is done; returns the table."""
    points, out = options.grid.points, options.out
    answers: dict[str, Sequence[Answer]] = {
        point.name: read_answers(_evaluation(out, point)) for point in points if _evaluated(out, point)
    }
    found = {rule: rows(points, answers, rule=rule) for rule in RULES}
    found = {rule: of for rule, of in found.items() if of}
    title = f"{options.grid.recipe} {' '.join(options.grid.fixed)}".strip()
    said = table(found, title=title, missing=len(points) - len(answers))
    content = _settings(options.grid) | {
        "made_by": options.made_by,
        "runs": [point.name for point in points],
        "done": list(answers),
        "note": NOTE,
        "rows": facts(found),
    }
    try:
        atomic_write(out / SWEEP_FILE, json.dumps(content, indent=1, ensure_ascii=False).encode())
        atomic_write(out / TABLE_FILE, f"{said}\n".encode())
        _write_charts(out, found, title, tell)
    except OSError as error:
        raise MachineError(
            f"cannot write into {str(out)!r}: {error.strerror}; make room, or choose another --out"
        ) from error
    return said


def _write_so_far(options: SweepOptions, tell: Callable[[str], None]) -> None:
    """Hours before the end somebody looks; what cannot be written now may be later."""
    try:
        write_outcome(options, lambda _: None)
    except MachineError as error:
        tell(str(error))


def _write_charts(out: Path, found: Mapping[str, Sequence[Row]], title: str, tell: Callable[[str], None]) -> None:
    from orchestration.sweep.chart import draw

    for rule, of in found.items():
        for kind in ("svg", "png"):
            try:
                content = draw(of, title=f"{title}\n{rule} rule", note=INTERVALS, kind=kind)
            except ImportError:
                tell("no chart: matplotlib is not installed; pip install 'rlvr[chart]'")
                return
            atomic_write(out / f"sweep-{rule}.{kind}", content)


def _config(options: SweepOptions, point: Point) -> RunConfig:
    return load_config(options.grid.recipe, _overrides(options, point))


def _overrides(options: SweepOptions, point: Point) -> list[str]:
    return [*OWN, *options.grid.fixed, *point.overrides, f"run_dir={_run(options.out, point)}"]


def _settings(grid: Grid) -> dict[str, Any]:
    return {"recipe": grid.recipe, "fixed": list(grid.fixed)}


def _take(options: SweepOptions) -> None:
    """Make the folder, or go on in it. Raises ConfigError where it holds another sweep; more values are no other."""
    path = options.out / SWEEP_FILE
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        was = json.loads(path.read_bytes()) if path.is_file() else _settings(options.grid)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"--out {str(options.out)!r} cannot be used: {why}; choose another") from error
    for key, value in _settings(options.grid).items():
        if was.get(key) != value:
            raise ConfigError(
                f"{str(options.out)!r} holds a sweep with {key}={was.get(key)}, not {value}: choose another --out"
            )
    if not path.is_file():
        atomic_write(path, json.dumps(_settings(options.grid)).encode())


def _job(options: SweepOptions, point: Point, config: RunConfig) -> Job:
    run, evaluation = _run(options.out, point), _evaluation(options.out, point)
    evaluate = ("eval", "--model", config.model.name, "--adapter", str(run / ADAPTER_FOLDER))
    log = options.out / "logs" / f"{point.name}.log"
    return Job(
        name=point.name,
        commands=(
            Command(
                words=("train", options.grid.recipe, *_overrides(options, point)), log=log, done=lambda: _trained(run)
            ),
            Command(
                words=(*evaluate, "--data", str(run / CONFIG_FILE), "--out", str(evaluation)),
                log=log,
                done=lambda: _evaluated(options.out, point),
            ),
        ),
    )


def _run(out: Path, point: Point) -> Path:
    return out / "runs" / point.name


def _evaluation(out: Path, point: Point) -> Path:
    return out / "evals" / point.name


def _evaluated(out: Path, point: Point) -> bool:
    return (_evaluation(out, point) / RESULTS_FILE).is_file()


def _trained(run: Path) -> bool:
    try:
        return bool(json.loads((run / SUMMARY_FILE).read_bytes()).get("status") == "finished")
    except (OSError, ValueError, AttributeError):
        return False
