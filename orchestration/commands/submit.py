"""`rlvr submit` and `rlvr jobs`: a run sent somewhere, and what became of it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from orchestration.commands.arguments import add_json, add_words, recipe_and_overrides
from orchestration.errors import ConfigError, SubmitError, UnreachableError, one_line
from orchestration.extras import own_file
from orchestration.run.rewards import own_modules
from orchestration.settings.config import RunConfig, Settings, load_settings
from orchestration.settings.tree import recipe_names
from orchestration.submit.common.book import JobBook, JobRecord
from orchestration.submit.common.job import Backend, JobSpec, JobState, JobStatus, job_name
from orchestration.submit.common.package import ROOMS, packed_code
from orchestration.submit.registry import PLACES, make_backend

_EXIT = {JobState.SUCCEEDED: 0, JobState.STOPPED: 130}
_EXIT_FAILED, _EXIT_NOT_FOLLOWED, _EXIT_INTERRUPTED = 1, 3, 130


def add_submit_commands(commands: Any) -> None:
    """`submit` and `jobs`, as subcommands of the whole command line."""
    submit = commands.add_parser(
        "submit",
        help="the same run somewhere else: a Ray job here, on a cluster, on SageMaker, on HyperPod",
        description="Send a run to a place, with the code that runs here. Nothing is sent before everything that can "
        "be checked has been.",
        epilog=f"recipes: {', '.join(recipe_names())}. Example: rlvr submit gsm8k --to ray "
        "ray.address=http://HOST:8265 data.train_file=s3://BUCKET/train.jsonl",
    )
    add_words(submit)
    submit.add_argument("--to", required=True, choices=PLACES, help="where it runs")
    submit.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    add_json(submit)
    submit.add_argument(
        "--follow",
        action="store_true",
        help="print the job's log until it ends, and exit as it did; with 3 when it cannot be followed",
    )
    submit.set_defaults(run=_submit)
    jobs = commands.add_parser("jobs", help="what was submitted from here").add_subparsers(
        required=True, metavar="COMMAND"
    )
    listing = jobs.add_parser("list", help="all jobs, the newest first")
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    listing.add_argument("--offline", action="store_true", help="do not ask their places how they are")
    listing.set_defaults(run=_list)
    for name, run, text in (
        ("status", _status, "how a job is"),
        ("logs", _logs, "what a job printed"),
        ("stop", _stop, "ask a job to save its state and end"),
    ):
        command = jobs.add_parser(name, help=text)
        command.add_argument("job", metavar="JOB", help="its name, as `rlvr submit` printed it")
        if name == "status":
            add_json(command)
        if name == "logs":
            command.add_argument(
                "--follow", "-f", action="store_true", help="until it ends; exits as the job did, or with 3"
            )
        command.set_defaults(run=run)


def _submit(arguments: argparse.Namespace) -> int:
    if arguments.dry_run and arguments.follow:
        raise ConfigError("--dry-run sends nothing that --follow could follow: leave one out")
    if arguments.json and arguments.follow:
        raise ConfigError("--json prints one object and --follow a log: leave one out")
    recipe, overrides = recipe_and_overrides(arguments.words)
    settings = load_settings(recipe, overrides)
    backend, book = make_backend(arguments.to, settings.submit), JobBook()
    with ExitStack() as stack:
        job = stack.enter_context(_specified(settings, recipe))
        plan = backend.plan(job)
        if arguments.dry_run:
            request = {**plan.request, **({"notes": plan.notes} if plan.notes else {})}
            print(json.dumps(request, indent=2) if arguments.json else plan.text().rstrip("\n"))
            return 0
        for note in plan.notes:
            _say(note)
        stack.enter_context(book.reserved(job.name))

        def remember(reference: Mapping[str, str]) -> None:
            book.write(
                JobRecord(
                    name=job.name,
                    place=arguments.to,
                    recipe=job.run.recipe,
                    submitted_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    reference=reference,
                    settings=getattr(settings.submit, arguments.to).model_dump(mode="json"),
                    evaluate=_evaluation(job.run, recipe, overrides, reference["adapter"]),
                )
            )

        try:
            reference = backend.submit(job, _say, remember)
        except (KeyboardInterrupt, UnreachableError):
            if book.knows(job.name):
                _say(f"{job.name} may have been sent all the same; rlvr jobs status {job.name} says whether it was")
            raise
        except BaseException:
            book.forget(job.name)
            raise
    record, hint = book.read(job.name), backend.dashboard_hint(reference)
    if arguments.json:
        row = {"job": job.name, "place": arguments.to, "reference": reference, "dashboard": hint}
        print(json.dumps({**row, "evaluate": record.evaluate}))
        return 0
    print(f"submitted {job.name}")
    _say(f"dashboard: {hint}")
    if arguments.follow:
        return _follow(backend, record)
    _say(f"to see it: rlvr jobs logs -f {job.name}; to stop it: rlvr jobs stop {job.name}")
    return 0


def _evaluation(run: RunConfig, recipe: str, overrides: Sequence[str], adapter: str) -> str:
    """The command that measures a job's adapter here: on the recipe's held-out problems, with the base it was trained
    on."""
    data = str(Path(recipe).resolve()) if Path(recipe).is_file() else recipe
    settings = [word for word in overrides if word.startswith(("data.", "data=", "learner.quantization="))]
    return shlex.join(["rlvr", "eval", "--model", run.model.name, "--adapter", adapter, "--data", data, *settings])


@contextmanager
def _specified(settings: Settings, recipe: str) -> Iterator[JobSpec]:
    job, file = settings.submit.job, Path(recipe)
    include = list(job.include)
    for module in own_modules(settings.run):
        own = None if module.partition(".")[0] in ROOMS else own_file(module)
        if own is not None and own.name not in [path.name for path in include]:
            include.append(own)
    with packed_code(include, recipe_folder=file.parent if file.is_file() else None) as code:
        yield JobSpec(
            name=job.name or job_name(settings.run.recipe),
            run=settings.run,
            code=code,
            environment=job.environment,
        )


def _follow(backend: Backend, record: JobRecord) -> int:
    """Print the log until the job ends; its exit status. Ctrl-C leaves the job alone."""
    try:
        for piece in backend.logs(record.reference, follow=True):
            sys.stdout.write(piece)
            sys.stdout.flush()
        status = backend.status(record.reference)
    except KeyboardInterrupt:
        _say(f"the job goes on; to see it: rlvr jobs logs -f {record.name}; to stop it: rlvr jobs stop {record.name}")
        return _EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read the log has gone; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_NOT_FOLLOWED
    except SubmitError as error:
        status = _asked(record)
        if not status.state.ended:
            _say(f"rlvr: {one_line(error)}; the job may go on: rlvr jobs status {record.name}")
            return _EXIT_NOT_FOLLOWED
        _say(f"rlvr: {one_line(error)}")
    for line in (f"{record.name} {_worded(status)}", *_results(record, status)):
        _say(line)
    if not status.state.ended:
        return _EXIT_NOT_FOLLOWED
    own = status.exit_code if status.state is JobState.FAILED else None
    return own or _EXIT.get(status.state, _EXIT_FAILED)


def _results(record: JobRecord, status: JobStatus) -> tuple[str, ...]:
    """What is left of a job that has ended."""
    if status.state not in (JobState.SUCCEEDED, JobState.STOPPED) or not record.evaluate:
        return ()
    return f"adapter: {record.reference['adapter']}", f"to measure it here: {record.evaluate}"


def _list(arguments: argparse.Namespace) -> int:
    records = JobBook().all()
    if arguments.offline:
        statuses = [JobStatus(state=JobState.UNKNOWN)] * len(records)
    else:  # at once: a place that does not answer takes its whole time-out
        with ThreadPoolExecutor(max_workers=8) as pool:
            statuses = list(pool.map(_asked, records))
    rows = [
        {**_described(record), "state": status.state.value, "message": status.message}
        for record, status in zip(records, statuses, strict=True)
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        print("no job was submitted from here")
        return 0
    columns = ("job", "place", "state", "recipe", "submitted_at")
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in columns]
    for row in ({name: name for name in columns}, *rows):
        print("  ".join(row[name].ljust(width) for name, width in zip(columns, widths, strict=True)).rstrip())
    return 0


def _status(arguments: argparse.Namespace) -> int:
    record = JobBook().read(arguments.job)
    backend = _backend(record)
    status = backend.status(record.reference)
    hint = backend.dashboard_hint(record.reference)
    if arguments.json:
        row = {**_described(record), "state": status.state.value, "message": status.message, "dashboard": hint}
        print(json.dumps({**row, "evaluate": record.evaluate, "reference": dict(record.reference)}))
        return 0
    for line in (f"{record.name} on {record.place} {_worded(status)}", *_results(record, status)):
        print(line)
    if not status.state.ended:
        print(f"dashboard: {hint}")
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    record = JobBook().read(arguments.job)
    backend = _backend(record)
    if arguments.follow:
        return _follow(backend, record)
    for piece in backend.logs(record.reference, follow=False):
        sys.stdout.write(piece)
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    record = JobBook().read(arguments.job)
    backend = _backend(record)
    status = backend.status(record.reference)
    if status.state.ended:
        print(f"{record.name} {_worded(status)} already")
        return 0
    if status.state is JobState.UNKNOWN:
        raise SubmitError(f"{record.name} cannot be stopped: {status.message}")
    backend.stop(record.reference)
    print(f"{record.name} was asked to stop; it saves its state first: rlvr jobs status {record.name}")
    return 0


def _asked(record: JobRecord) -> JobStatus:
    """A job's state, or why its place does not say."""
    try:
        return _backend(record).status(record.reference)
    except (SubmitError, ConfigError) as error:
        return JobStatus(state=JobState.UNKNOWN, message=" ".join(str(error).split()))


def _backend(record: JobRecord) -> Backend:
    from pydantic import ValidationError

    from orchestration.settings.submit import SubmitConfig

    try:
        return make_backend(record.place, SubmitConfig.model_validate({record.place: dict(record.settings)}))
    except ValidationError as error:
        raise ConfigError(
            f"the job {record.name} was submitted by another version, with other settings: {one_line(error)}"
        ) from error


def _described(record: JobRecord) -> dict[str, str]:
    return {
        "job": record.name,
        "place": record.place,
        "recipe": record.recipe,
        "submitted_at": record.submitted_at,
    }


def _worded(status: JobStatus) -> str:
    words = {JobState.PENDING: "is pending", JobState.RUNNING: "is running", JobState.STOPPED: "was stopped"}
    text = words.get(status.state, status.state.value)
    return f"{text} ({status.message})" if status.message else text


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
