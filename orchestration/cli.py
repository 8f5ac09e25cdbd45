"""The command line: `rlvr train | replay | plan | submit | jobs | eval | report | prepare | reward | …`.

Only the standard library and the configuration are loaded here; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestration.commands.arguments import add_json, add_run_dir, add_words, positive, recipe_and_overrides
from orchestration.commands.benches import add_bench_commands
from orchestration.commands.evaluations.words import add_evaluation_commands
from orchestration.commands.monitor import add_monitor
from orchestration.commands.plan import add_plan_command
from orchestration.commands.rescore import add_rescore
from orchestration.commands.submit import add_submit_commands
from orchestration.commands.trace import add_trace
from orchestration.commands.watch import add_watch
from orchestration.errors import ConfigError, RlvrError
from orchestration.scratch import own_temporary_folder
from orchestration.settings.config import load_config, load_settings
from orchestration.settings.tree import recipe_names
from reward_service.commands import add_commands
from reward_service.errors import OperatorError, UsageError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors that say what the user can do about them; others would be ours."""
_STARTING = frozenset({"train", "replay", "eval", "claim", "sweep", "rescore", "trace", "prepare", "reward", "bench"})
"""Commands that end all that they start. Others, as `submit`, leave processes behind that go on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 failed with a reason, 2 wrong usage, 130 interrupted."""
    _mend_streams()
    arguments = _parse(argv)
    try:
        _refuse_a_folder_that_is_gone()
        with own_temporary_folder() if arguments.command in _STARTING else nullcontext():
            status = int(arguments.run(arguments) or 0)
            sys.stdout.flush()  # here an error of it is told
            return status
    except (ConfigError, UsageError) as error:
        _complain(error)
        return EXIT_USAGE
    except (RlvrError, OperatorError) as error:
        _complain(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("rlvr: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as in `rlvr … | head`
        _drop_output()
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        _drop_output()
        place = f"{error.filename} cannot be read or written" if error.filename else "output cannot be written"
        _complain(f"{place}: {error.strerror}")
        return EXIT_FAILED


def _refuse_a_folder_that_is_gone() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the current folder is gone: change into one that exists") from None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and take key=value words that stand behind an option too, which argparse alone would refuse."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    for name in ("words", "overrides"):
        if hasattr(arguments, name) and all("=" in word and not word.startswith("-") for word in rest):
            getattr(arguments, name).extend(rest)
            return arguments
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="rlvr",
        description="Reinforcement learning with verifiable rewards: vLLM rollouts, a DeepSpeed GRPO learner, "
        "rewards over HTTP.",
    )
    parser.add_argument("--version", action="version", version=f"rlvr {metadata.version('rlvr')}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    add_submit_commands(commands)
    add_plan_command(commands)
    _add_replay(commands)
    add_evaluation_commands(commands)
    _add_report(commands)
    add_trace(commands)
    add_watch(commands)
    add_rescore(commands)
    add_monitor(commands)
    _add_prepare(commands)
    _add_settings(commands)
    _add_reward(commands)
    _add_model(commands)
    _add_doctor(commands)
    add_bench_commands(commands)
    return parser


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="the main job: sample, score, learn, publish",
        description="Train a LoRA adapter by GRPO. Writes a run folder; Ctrl-C stops cleanly and leaves an adapter.",
        epilog=f"recipes: {', '.join(recipe_names())}. Example: rlvr train arithmetic max_steps=20 seed=1",
    )
    add_words(train)
    train.set_defaults(run=_train)


def _add_replay(commands: Any) -> None:
    replay = commands.add_parser(
        "replay",
        help="a recorded step of a run again, alone",
        description="Learn a recorded step again, from the checkpoint before it and the records since, and say whether "
        "figures and adapter are the recorded ones. On CPUs with one learner rank they are, bit for bit.",
    )
    add_run_dir(replay)
    replay.add_argument("step", metavar="STEP", type=positive, help="which step")
    replay.add_argument("--compare", action="store_true", help="exit status 1 unless it is as recorded, bit for bit")
    replay.add_argument("--rollout", action="store_true", help="sample the step's prompts again, instead of learning")
    add_json(replay)
    replay.set_defaults(run=_replay)


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="one HTML page of a run, or of several side by side")
    report.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="run folders, finished or under way")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: RUN_DIR/report.html, or report.html here")
    report.add_argument(
        "--watch", action="store_true", help="write it anew every few seconds until the runs have ended"
    )
    report.set_defaults(run=_report)


def _add_prepare(commands: Any) -> None:
    prepare = commands.add_parser(
        "prepare",
        help="a recipe's problems as files, here or on S3",
        description="Write a recipe's training and held-out problems as train.jsonl and validation.jsonl, in GSM8K's "
        "format or for the task `table`, and print the settings that read them. With an option of GSM8K's: the data "
        "set divided, with examples, as .jsonl, .json and .parquet, with a data card.",
        epilog="Example: rlvr prepare gsm8k --source train.jsonl --shots 8 data.style=article --out gsm8k",
    )
    add_words(prepare)
    prepare.add_argument("--source", metavar="FILE|hub", help="GSM8K: its training file, or the hub's data set")
    prepare.add_argument("--test", metavar="FILE", help="GSM8K: test questions, which must be in none of the files")
    prepare.add_argument("--shots", type=int, metavar="N", help="GSM8K: worked examples of each prompt, 0 to 16")
    prepare.add_argument("--validation", type=float, default=0.1, metavar="SHARE", help="GSM8K: held out (0.1)")
    prepare.add_argument("--seed", type=int, default=42, metavar="N", help="GSM8K: of the division (42)")
    prepare.add_argument("--out", metavar="FOLDER", help="write them here")
    prepare.add_argument("--upload", metavar="s3://BUCKET/PREFIX", help="put them there")
    prepare.set_defaults(run=_prepare)


def _add_settings(commands: Any) -> None:
    settings = commands.add_parser(
        "settings", help="what can be set: name, type, default, meaning; finds TRL's and transformers' names"
    )
    settings.add_argument(
        "section", nargs="?", help="such as `learner.loss`, `rollout.top_p`, or a name from elsewhere: `lora_r`"
    )
    settings.add_argument(
        "--from", dest="file", metavar="FILE", help="a YAML file for TRL's trainer: where each key goes"
    )
    settings.add_argument("--json", action="store_true", help="print a JSON list")
    settings.set_defaults(run=_settings)


def _add_reward(commands: Any) -> None:
    reward = commands.add_parser("reward", help="the reward service").add_subparsers(required=True, metavar="COMMAND")
    add_commands(reward)


def _add_model(commands: Any) -> None:
    model = commands.add_parser("model", help="models").add_subparsers(required=True, metavar="COMMAND")
    fetch = model.add_parser("fetch", help="prepare an embedded model, or fetch one from the hub, and print its folder")
    fetch.add_argument("name", help="smollm2-135m-instruct, tiny, a hub id or a local folder")
    fetch.add_argument("--revision", help="hub revision")
    fetch.set_defaults(run=_model_fetch)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="what this machine has, what a recipe needs, what to do about the rest")
    add_words(doctor)
    add_json(doctor)
    doctor.set_defaults(run=_doctor)


def _train(arguments: argparse.Namespace) -> int:
    config = load_config(*recipe_and_overrides(arguments.words))
    from orchestration.commands.train import run_training

    return run_training(config)


def _replay(arguments: argparse.Namespace) -> int:
    from orchestration.commands.replay import ReplayOptions, in_words, run_replay
    from orchestration.report.progress import progress_printer

    options = ReplayOptions(run_dir=arguments.run_dir, step=arguments.step, rollout=arguments.rollout)
    with progress_printer(sys.stderr) as progress:
        result = run_replay(options, progress)
    print(json.dumps(result) if arguments.json else in_words(result))
    return EXIT_FAILED if arguments.compare and not result["equal"] else 0


def _report(arguments: argparse.Namespace) -> int:
    from orchestration.commands.report import write_report

    told: set[Path] = set()

    def tell(path: Path) -> None:
        if path not in told:
            print(path, flush=True)
        told.add(path)

    write_report(arguments.run_dirs, arguments.out, watch=arguments.watch, on_written=tell)
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    if arguments.out is None and arguments.upload is None:
        raise ConfigError("where to? give --out FOLDER, --upload s3://BUCKET/PREFIX, or both")
    settings = load_settings(*recipe_and_overrides(arguments.words))
    from orchestration.commands.prepare import prepare
    from orchestration.commands.prepare_gsm8k import PrepareOptions, prepare_gsm8k
    from orchestration.data.tasks.gsm8k import Gsm8k
    from orchestration.report.progress import progress_printer

    out = None if arguments.out is None else Path(arguments.out)
    task, kms_key = settings.run.data, settings.submit.sagemaker.kms_key
    names = ("source", "test", "shots", "validation", "seed")
    options = PrepareOptions(**{name: getattr(arguments, name) for name in names})
    if options.given() and not isinstance(task, Gsm8k):
        raise ConfigError(f"--{', --'.join(names)} are for GSM8K, and {settings.run.recipe} is the task {task.kind!r}")
    with progress_printer(sys.stderr) as progress:
        if options.given() and isinstance(task, Gsm8k):
            said = prepare_gsm8k(task, options, out=out, upload_to=arguments.upload, kms_key=kms_key, progress=progress)
        else:
            said = prepare(settings.run, out=out, upload_to=arguments.upload, kms_key=kms_key, progress=progress)
    print(said)
    return 0


def _settings(arguments: argparse.Namespace) -> int:
    from orchestration.commands.settings import show_settings, show_translation

    if arguments.file is not None:
        print(show_translation(arguments.file, as_json=arguments.json))
    else:
        print(show_settings(arguments.section, as_json=arguments.json))
    return 0


def _model_fetch(arguments: argparse.Namespace) -> int:
    from orchestration.models.resolve import resolve_model
    from orchestration.report.progress import progress_printer

    with progress_printer(sys.stderr) as progress:
        print(resolve_model(arguments.name, revision=arguments.revision, progress=progress))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from orchestration.machine import doctor

    return doctor.run(load_config(*recipe_and_overrides(arguments.words)), as_json=arguments.json)


def _mend_streams() -> None:
    """One that is closed (`>&-`) goes nowhere, as files opened later would get its number and our words; a letter that
    the terminal's encoding lacks is a question mark."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """What is left in the buffer would be tried, and fail, once more at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(error: Exception | str) -> None:
    print(f"rlvr: {' '.join(str(error).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
