"""`rlvr claim`: what may be claimed of a run, or of anybody's adapter, as a page and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from orchestration.commands.evaluations.evaluate import EvalOptions, evaluation_config, run_evaluation
from orchestration.errors import ConfigError, MachineError, one_line
from orchestration.evals.answers import Answer
from orchestration.evals.claim import Evidence, Other, Sentence, other, sentences
from orchestration.evals.claim_page import render
from orchestration.evals.leakage import overlaps
from orchestration.run.ledger.names import ADAPTER_FOLDER, COMPLETIONS_FOLDER, CONFIG_FILE, config_of
from orchestration.storage.atomic import atomic_write

PAGE_FILE: Final = "claim.html"
JSON_FILE: Final = "claim.json"
CLAIM_FOLDER: Final = "claim"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimOptions:
    """Of what, and beside what."""

    run_dir: Path | None
    """A run folder; None: `model`, `adapter` and `data` say it."""
    model: str | None = None
    adapter: str | None = None
    data: str | None = None
    controls: Sequence[Path] = ()
    """Runs on random rewards."""
    seed_runs: Sequence[Path] = ()
    """The same run with other seeds."""
    limit: int | None = None
    num_train: int = 100
    article_tokens: int = 1024
    out: Path | None = None
    overrides: Sequence[str] = ()


def write_claim(options: ClaimOptions, *, made_by: str) -> tuple[Path, list[Sentence]]:
    """Evaluate what is not evaluated yet, and write page and JSON; returns the page's path and its sentences.

    Raises RlvrError: one sentence for the user.
    """
    evaluated, own = evaluation_options(options)
    out = options.out or (options.run_dir / CLAIM_FOLDER if options.run_dir else Path(CLAIM_FOLDER))
    others = [(path, run_settings(path)) for path in (*options.controls, *options.seed_runs)]
    _check_others(options, own, others)
    found = run_evaluation(replace(evaluated, out=out / "evaluation"))
    config = evaluation_config(
        model=evaluated.model,
        adapter=evaluated.adapter,
        data=evaluated.data,
        limit=evaluated.limit,
        overrides=evaluated.overrides,
    )
    evidence = Evidence(
        results=found.results,
        answers=found.answers,
        overlaps=overlaps(found.problems),
        control="unknown" if own is None else control_of(own),
        others=[_other(path, settings, evaluated, out, found.answers) for path, settings in others],
        trained_on_held_out=None
        if options.run_dir is None
        else asked_in_training(options.run_dir, {problem.problem_id for problem in found.problems.eval}),
        limit=config.rollout.max_completion_length,
        article_tokens=options.article_tokens,
    )
    claimed = sentences(evidence)
    title = f"What may be claimed of {evaluated.adapter} on {evaluated.model}"
    facts = {
        "claims": [asdict(one) for one in claimed],
        "model": evaluated.model,
        "adapter": evaluated.adapter,
        "trained_with_control": evidence.control,
        "seed": own["seed"] if own else None,
        "others": [{key: value for key, value in asdict(one).items() if key != "strict"} for one in evidence.others],
        "leakage": [one.facts() for one in evidence.overlaps],
        "held_out_problems_asked_in_training": evidence.trained_on_held_out,
        "results": found.results,
        "made_by": made_by,
    }
    page = render(title, evidence, claimed, made_by=made_by)
    try:
        atomic_write(out / JSON_FILE, json.dumps(facts, indent=1, ensure_ascii=False).encode("utf-8", "replace"))
        atomic_write(out / PAGE_FILE, page.encode("utf-8", "replace"))
    except OSError as error:
        raise MachineError(f"cannot write into {out}: {error.strerror}; choose another --out") from error
    return out / PAGE_FILE, claimed


def evaluation_options(options: ClaimOptions) -> tuple[EvalOptions, dict[str, Any] | None]:
    """What is evaluated, and the run's settings where there is a run. Raises ConfigError."""
    own = None
    model, adapter, data = options.model, options.adapter, options.data
    if options.run_dir is not None:
        if model or adapter or data:
            raise ConfigError("give RUN_DIR, or --model, --adapter and --data: a run folder says all three")
        own = run_settings(options.run_dir)
        model, adapter = own["model"]["name"], str(options.run_dir / ADAPTER_FOLDER)
        data = str(options.run_dir / CONFIG_FILE)
    if not (model and adapter and data):
        raise ConfigError("of what? give a run folder, or --model, --adapter and --data")
    evaluated = EvalOptions(
        model=model,
        adapter=adapter,
        data=data,
        limit=options.limit,
        overrides=options.overrides,
        article_tokens=options.article_tokens,
        num_train=options.num_train,
    )
    return evaluated, own


def run_settings(run_dir: Path) -> dict[str, Any]:
    """A run's settings, as its folder has them.

    Raises:
        ConfigError: It is no run's folder.
    """
    path = config_of(run_dir)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {**settings, "reward": dict(settings["reward"]), "model": dict(settings["model"])}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a run's settings: {one_line(error)}") from error


def control_of(settings: dict[str, Any]) -> str:
    """What a run was trained on: `none` if on its rewards."""
    return str(settings["reward"].get("control", "none"))


def asked_in_training(run_dir: Path, held_out: set[str]) -> int | None:
    """How many held-out problems the run's recorded steps asked; None where none is recorded."""
    from pyarrow import parquet

    files = sorted((run_dir / COMPLETIONS_FOLDER).glob("step-*.parquet"))
    asked = {
        name for file in files for name in parquet.read_table(file, columns=["prompt_id"])["prompt_id"].to_pylist()
    }
    return len(asked & held_out) if files else None


def _check_others(
    options: ClaimOptions, own: dict[str, Any] | None, others: Sequence[tuple[Path, dict[str, Any]]]
) -> None:
    for path, settings in others:
        is_control = path in options.controls
        if is_control and control_of(settings) == "none":
            raise ConfigError(f"--control {path}: that run was trained on its rewards, not with reward.control=random")
        if not is_control and control_of(settings) != "none":
            raise ConfigError(f"--seed-run {path}: that run is a control; give it as --control")
        for key in ("model", "data"):
            if own is not None and settings.get(key) != own.get(key):
                raise ConfigError(f"{path} has other settings of `{key}` than {options.run_dir}: not to be compared")


def _other(path: Path, settings: dict[str, Any], evaluated: EvalOptions, out: Path, mine: Sequence[Answer]) -> Other:
    found = run_evaluation(
        replace(
            evaluated,
            adapter=str(path / ADAPTER_FOLDER),
            with_base=False,
            num_train=0,
            out=out / f"evaluation-{path.resolve().name}",
        )
    )
    return other(path.name, seed=int(settings["seed"]), control=control_of(settings), answers=found.answers, mine=mine)
