"""The words of `rlvr eval`, `rlvr claim` and `rlvr sweep`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from orchestration.commands.arguments import add_json, add_overrides, natural, positive


def add_evaluation_commands(commands: Any) -> None:
    """Adds the three."""
    _add_eval(commands)
    _add_claim(commands)
    _add_sweep(commands)


def _add_eval(commands: Any) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="accuracy on held-out problems: strict and lenient, base and adapter",
        description="Answer held-out problems, greedily and by samples, by the base model and, with --adapter, by both "
        "on one engine, with the paired difference. With --out an evaluation that was broken off goes on.",
    )
    evaluate.add_argument("--model", required=True, help="an embedded model's name, a local folder or a hub id")
    evaluate.add_argument("--adapter", help="a peft folder, such as RUN/adapter or s3://…")
    evaluate.add_argument(
        "--data",
        required=True,
        help="a recipe's name or YAML file (its held-out problems), or a JSON lines file in GSM8K's format",
    )
    evaluate.add_argument("--no-base", action="store_true", help="with --adapter: leave the base model out")
    evaluate.add_argument(
        "--samples", type=positive, default=0, metavar="N", help="draw N completions a problem too: pass@k, maj@N"
    )
    evaluate.add_argument("--out", type=Path, metavar="FOLDER", help="keep answers (parquet) and figures (JSON) here")
    evaluate.add_argument("--limit", type=positive, help="use only the first N problems")
    add_json(evaluate)
    evaluate.add_argument(
        "--lm-eval-compatible",
        action="store_true",
        help="also by lm-eval's filters for gsm8k, strict-match and flexible-extract; answers end at its stop strings",
    )
    add_overrides(evaluate)
    evaluate.set_defaults(run=_eval)


def _add_claim(commands: Any) -> None:
    claim = commands.add_parser(
        "claim",
        help="a page that says what may be claimed of a run, or of anybody's adapter",
        description="Evaluate base and adapter, and write which claims the figures carry: leakage, form and stopping, "
        "truncation, intervals, controls, seeds, and the AWS article's own evaluation beside ours.",
    )
    claim.add_argument("run_dir", nargs="?", type=Path, metavar="RUN_DIR", help="a finished run's folder")
    claim.add_argument("--model", help="instead of RUN_DIR: an embedded model's name, a local folder or a hub id")
    claim.add_argument("--adapter", help="and a peft folder, or s3://…")
    claim.add_argument("--data", help="and a recipe, or a JSON lines file in GSM8K's format")
    claim.add_argument(
        "--control", type=Path, action="append", default=[], metavar="RUN_DIR", help="a run with reward.control=random"
    )
    claim.add_argument(
        "--seed-run", type=Path, action="append", default=[], metavar="RUN_DIR", help="the same run with another seed"
    )
    claim.add_argument("--limit", type=positive, help="use only the first N held-out problems")
    claim.add_argument(
        "--train-problems", type=natural, default=100, metavar="N", help="for the article's evaluation (100)"
    )
    claim.add_argument(
        "--article-tokens", type=natural, default=1024, metavar="N", help="how far completions run on (1024); 0: not"
    )
    claim.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN_DIR/claim, or claim here")
    add_overrides(claim)
    claim.set_defaults(run=_claim)


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="train and evaluate a grid of settings and seeds; one chart and one table",
        description="Train and evaluate every run of a grid. Started again it goes on where it was stopped, and leaves "
        "alone what is done. reward.control=random adds to each run one that is trained on random rewards.",
        epilog="example: rlvr sweep gsm8k data.num_shots=0,2,4,8 seed=0,1,2 reward.control=random --out shots",
    )
    sweep.add_argument(
        "words", nargs="+", metavar="RECIPE | key=value[,value …]", help="a recipe, then settings; several values: each"
    )
    sweep.add_argument("--out", type=Path, default=Path("sweep"), metavar="FOLDER", help="default: sweep")
    sweep.add_argument("--jobs", type=positive, metavar="N", help="runs at a time; default: as the machine has room")
    sweep.set_defaults(run=_sweep)


def _eval(arguments: argparse.Namespace) -> int:
    from orchestration.commands.evaluations.evaluate import EvalOptions, run_evaluation

    found = run_evaluation(
        EvalOptions(
            model=arguments.model,
            adapter=arguments.adapter,
            data=arguments.data,
            limit=arguments.limit,
            overrides=arguments.overrides,
            with_base=not arguments.no_base,
            num_samples=arguments.samples,
            as_lm_eval=arguments.lm_eval_compatible,
            out=arguments.out,
        )
    )
    print(json.dumps(found.results) if arguments.json else found.table)
    return 0


def _claim(arguments: argparse.Namespace) -> int:
    from orchestration.commands.evaluations.claim import ClaimOptions, write_claim

    if arguments.run_dir is not None and "=" in str(arguments.run_dir) and not arguments.run_dir.exists():
        arguments.overrides.insert(0, str(arguments.run_dir))  # key=value behind --model, --adapter and --data
        arguments.run_dir = None
    options = ClaimOptions(
        run_dir=arguments.run_dir,
        model=arguments.model,
        adapter=arguments.adapter,
        data=arguments.data,
        controls=arguments.control,
        seed_runs=arguments.seed_run,
        limit=arguments.limit,
        num_train=arguments.train_problems,
        article_tokens=arguments.article_tokens,
        out=arguments.out,
        overrides=arguments.overrides,
    )
    path, claimed = write_claim(options, made_by=shlex.join(["rlvr", *sys.argv[1:]]))
    for one in claimed:
        print(f"{one.verdict:4}  {one.text}")
    print(path)
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from orchestration.commands.evaluations.sweep import SweepOptions, run_sweep
    from orchestration.sweep.grid import read_grid

    options = SweepOptions(
        grid=read_grid(arguments.words),
        out=arguments.out,
        jobs=arguments.jobs,
        made_by=shlex.join(["rlvr", *sys.argv[1:]]),
    )
    said, failed = run_sweep(options, lambda text: print(f"rlvr: {text}", file=sys.stderr, flush=True))
    print(said)
    for one in failed:
        print(f"rlvr: {one}", file=sys.stderr)
    return 1 if failed else 0
