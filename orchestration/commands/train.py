"""`rlvr train`: checks first, then starts the rooms, runs the loop, and puts everything away again."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Awaitable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from learner.checkpoint import weights_fingerprint
from learner.errors import LearnerError
from orchestration.cluster.reward.deployment import reward_client
from orchestration.cluster.reward.keeper import RewardKeeper
from orchestration.cluster.upkeep.ahead import import_ahead
from orchestration.cluster.upkeep.garbage import collect_seldom
from orchestration.commands.report import write_report
from orchestration.concurrency import in_thread, unless_set, within
from orchestration.data.problems import Problems
from orchestration.data.prompts import PromptBuilder, PromptSet
from orchestration.data.source import PromptSource
from orchestration.episodes.generator import acting
from orchestration.errors import DataError, MachineError, RlvrError, in_a_sentence
from orchestration.machine import doctor
from orchestration.machine.placement import Placement
from orchestration.models.dequantized import served_model
from orchestration.models.prompting import make_prompt_builder, training_sampling
from orchestration.models.resolve import check_trainable, resolve_model
from orchestration.monitor import programs
from orchestration.page.card import make_portable
from orchestration.report import Reporter, make_reporter
from orchestration.run.ledger.changes import where_to_go_on
from orchestration.run.ledger.folder import RunFolder, plain_name
from orchestration.run.ledger.names import AUDIT_FILE, COMPLETIONS_FOLDER
from orchestration.run.loop import Rooms, TrainingLoop
from orchestration.run.rewards import check_rewards
from orchestration.run.scorer import make_scorers
from orchestration.run.start import StartClock
from orchestration.settings.config import RunConfig
from orchestration.storage.cache import Progress
from orchestration.tracking.reporter import TrackingReporter
from orchestration.tracking.sink import Tracked
from orchestration.tracking.trackers import check_trackers, flat_settings, open_trackers
from reward_service.clients.errors import RewardServiceError
from reward_service.errors import ServiceStartError
from rollout_server.errors import RolloutError

if TYPE_CHECKING:
    from orchestration.cluster.cluster import Cluster

Result = TypeVar("Result")


class Interrupted(Exception):  # noqa: N818  # not an error: the user asked for it
    """The user stopped the run before its first step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """What a run asks."""

    problems: Problems
    builder: PromptBuilder
    source: PromptSource
    held_out: PromptSet
    weights: str
    """Fingerprint of those of the model that is asked."""

    @classmethod
    def of(cls, config: RunConfig, problems: Problems, model_path: Path) -> Texts:
        builder = make_prompt_builder(config, problems, model_path)
        order = config.seed, config.curriculum, config.data.category_weights()
        source = PromptSource(problems.train, builder.build, *order)
        source.check()
        return cls(
            problems=problems,
            builder=builder,
            source=source,
            held_out=builder.build_all(problems.eval),
            weights=weights_fingerprint(model_path),
        )


def run_training(config: RunConfig) -> int:
    """Train as the configuration says; returns the exit status.

    Raises RlvrError with one sentence for the user; the rooms' own errors arrive as that.
    """
    try:
        return asyncio.run(_train(config))
    except (LearnerError, RolloutError, RewardServiceError, ServiceStartError) as error:
        raise RlvrError(str(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise in_a_sentence("the run cannot go on", error) from error
    except (Interrupted, asyncio.CancelledError):
        raise KeyboardInterrupt from None


async def _train(config: RunConfig) -> int:
    start, stop = StartClock.of_this_process(), asyncio.Event()
    with signals_set(stop), closing(make_reporter(sys.stdout)) as shown:
        # Everything that can be wrong cheaply comes before the first folder is made and the first room started.
        with start.phase("checks"):
            doctor.require_machine(config)
            import_ahead(config)
            check_trackers(config.report_to)
            problems = await _unless_stopped(stop, in_thread(config.data.load))
            await _unless_stopped(stop, _check_rewards(config, problems))
        with start.phase("model"):
            model_path = await _unless_stopped(stop, _resolve_model(config, shown))
            texts = await _unless_stopped(stop, in_thread(partial(Texts.of, config, problems, model_path)))
        folder = RunFolder.create(
            config, lambda path: where_to_go_on(path, config, texts.source.digest(), texts.weights)
        )
        try:
            async with AsyncExitStack() as stack:
                reporter = stack.enter_context(closing(tracked_reporter(config, folder, shown)))
                rooms = await _unless_stopped(
                    stop, _start_rooms(stack, config, folder, reporter, start, model_path, texts)
                )
                if skipped := texts.held_out.skipped:
                    reporter.note(
                        "warning", f"{len(skipped)} held-out prompts are longer than the context and were skipped"
                    )
                collect_seldom()
                give_away = partial(_give_away, folder, model_path, config, shown)
                summary = await TrainingLoop(config, rooms, folder, reporter, stop, give_away).run()
        finally:
            _seal(folder, shown)
            folder.close()
    return 0 if summary["status"] == "finished" else 130


def tracked_reporter(config: RunConfig, folder: RunFolder, reporter: Reporter) -> TrackingReporter:
    """A reporter that tells the run's trackers too. At the end it writes the page."""
    settings = flat_settings(config.model_dump(mode="json"))
    name = config.run_name or folder.path.name
    run = Tracked(project=config.project, name=name, folder=folder.path, settings=settings)

    def kept(summary: Mapping[str, Any]) -> list[Path]:
        try:
            page = [write_report([folder.path])]
            reporter.note("info", f"the run's page is {page[0]}")
        except RlvrError as error:
            reporter.note("warning", f"the run's page was not written: {error}")
            page = []
        paths = [folder.path / COMPLETIONS_FOLDER, *([folder.adapter_path] if config.track_adapter else [])]
        return [*page, *(path for path in paths if path.exists())]

    return TrackingReporter(reporter, open_trackers(config.report_to, run), kept)


def _give_away(
    folder: RunFolder, model_path: Path, config: RunConfig, reporter: Reporter, summary: Mapping[str, Any]
) -> None:
    try:
        make_portable(folder.adapter_path, model_path, config, summary)
    except (OSError, ValueError) as error:
        reporter.note("warning", f"{folder.adapter_path} has no card and no tokenizer: {' '.join(str(error).split())}")


def _seal(folder: RunFolder, reporter: Reporter) -> None:
    """Everything has ended that wrote to the folder."""
    try:
        head = folder.seal()
    except RlvrError as error:
        reporter.note("warning", f"the run's trail has no end: {error}")
        return
    if head is not None:
        reporter.note("info", f"the trail ends with {head}: kept elsewhere, it proves the folder (rlvr trace --verify)")


async def _check_rewards(config: RunConfig, problems: Problems) -> None:
    limit_s = config.reward.start_timeout_s
    try:  # in a thread, so that Ctrl-C ends a reward of somebody's own that hangs
        await within(limit_s, in_thread(partial(check_rewards, config, problems)))
    except TimeoutError as error:
        raise DataError(
            f"the run's rewards did not score one problem of the task {config.data.kind!r} within "
            f"reward.start_timeout_s={limit_s:g} s; see what they wait for"
        ) from error


def _monitor(reporter: Reporter) -> None:
    """Before Ray is started, whose dashboard is told by its environment where they are."""
    try:
        monitor = programs.up()
    except MachineError as error:
        reporter.note("warning", f"the run is not recorded: {error}")
        return
    os.environ.update(monitor.ray_environment())
    reporter.note("info", f"recorded by Prometheus at {monitor.prometheus}; {monitor.where()}")


async def _resolve_model(config: RunConfig, reporter: Reporter) -> Path:
    reporter.phase("preparing", f"model {config.model.name}")
    progress = _progress_to(reporter)
    folder = await in_thread(partial(resolve_model, config.model.name, config.model.revision, progress=progress))
    check_trainable(folder)
    return folder


def _progress_to(reporter: Reporter) -> Progress:
    loop = asyncio.get_running_loop()

    def progress(message: str, share: float) -> None:  # called in the thread that prepares
        loop.call_soon_threadsafe(reporter.phase, "preparing", f"{message}, {share:.0%}")

    return progress


async def _start_rooms(
    stack: AsyncExitStack,
    config: RunConfig,
    folder: RunFolder,
    reporter: TrackingReporter,
    start: StartClock,
    model_path: Path,
    texts: Texts,
) -> Rooms:
    """Start everything; the stack ends it again, the reward service first."""
    from orchestration.cluster.cluster import Cluster  # loads ray, a second or two: not before the cheap checks
    from orchestration.cluster.generator import ScoringPool
    from orchestration.cluster.nodes import own_node_id
    from orchestration.cluster.showing.board import Board

    if config.monitor:
        await asyncio.to_thread(_monitor, reporter)
    run_id, groups = f"{plain_name(folder.path.name)}-{os.getpid()}", dict[str, int]()
    cluster = Cluster(config, run_id=run_id, note=reporter.note, groups=groups)
    stack.push_async_callback(cluster.shutdown)
    placement, keeper = await _connect(stack, cluster, config, folder, reporter, start)
    scorer, judges = make_scorers(config, keeper, run_id=folder.path.name)
    _tell_of_whole_modules(config, reporter)
    if config.ray_address is None:  # the workers would do it in silence; on other nodes they have to
        progress = _progress_to(reporter)
        await in_thread(partial(served_model, model_path, config, device=placement.device, progress=progress))
    reporter.phase("starting", "vLLM engines and learner ranks")
    pool, learner = await cluster.start_both(
        _timed(start, "engines", cluster.start_rollout()), _timed(start, "learner", cluster.start_learner())
    )
    board = Board(config, run_id=run_id, folder=folder.path, groups=groups)
    reporter.add("Ray's dashboard", board, lambda _: board.begin(keeper.url))
    for note in await learner.notes():
        reporter.note("info", note)
    scoring = ScoringPool(pool, keeper, config, run_id=folder.path.name, node_id=own_node_id(), note=reporter.note)
    hosts = cluster.environment_hosts()
    return Rooms(
        generator=acting(scoring, config, texts.problems, texts.builder, keeper, device=placement.device, hosts=hosts),
        learner=learner,
        scorer=scorer,
        judges=judges,
        source=texts.source,
        held_out=texts.held_out.prompts,
        sampling=training_sampling(config, texts.builder),
        weights=texts.weights,
        start=start,
    )


async def _connect(
    stack: AsyncExitStack,
    cluster: Cluster,
    config: RunConfig,
    folder: RunFolder,
    reporter: TrackingReporter,
    start: StartClock,
) -> tuple[Placement, RewardKeeper]:
    """Ray and the reward service, which starts meanwhile unless it is to be an actor."""
    from orchestration.cluster.joining import take_back_sigterm

    logs, audit_log = folder.path / "logs", folder.path / AUDIT_FILE if config.audit else None
    connecting = asyncio.create_task(_timed(start, "ray", asyncio.to_thread(cluster.connect)))
    stack.push_async_callback(asyncio.wait, {connecting})  # shut down while it connects, Ray would stay behind
    keeper = None
    if config.reward.deployment.kind != "actor":
        service = stack.enter_async_context(reward_client(config, logs, audit_log=audit_log, note=reporter.note))
        keeper = await _timed(start, "reward_service", service)
    placement = await connecting
    take_back_sigterm()
    reporter.start(config, f"{placement.mode}: {cluster.describe()}")
    if keeper is None:
        reporter.phase("starting", "the reward service")
        keeper = await _timed(start, "reward_service", stack.enter_async_context(cluster.reward_client(logs)))
    return placement, keeper


def _tell_of_whole_modules(config: RunConfig, reporter: TrackingReporter) -> None:
    if whole := ", ".join(config.learner.lora.modules_to_save or ()):
        reporter.note(
            "info",
            f"modules_to_save={whole}: what is trained whole cannot be served in several versions, so every publish "
            f"waits until generation has drained",
        )


async def _timed(start: StartClock, phase: str, work: Awaitable[Result]) -> Result:
    with start.phase(phase):
        return await work


@contextmanager
def signals_set(stop: asyncio.Event) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP set `stop`, which ends the run in order: the update under way is finished, state is
    saved. One that was ignored before, as SIGHUP is under nohup, stays so.

    A second one cancels what the run is doing, so that only processes are ended; a third ends this process at once.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    num_signals = 0

    def on_signal(number: int) -> None:
        nonlocal num_signals
        if number == signal.SIGHUP:
            _leave_terminal()
            stop.set()  # it may come twice, from the kernel and from the shell, and nobody has asked twice
            return
        num_signals += 1
        if num_signals == 1:
            stop.set()
        elif num_signals == 2 and task is not None:
            task.cancel()
        else:
            os._exit(130)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            if num_signals:  # a hurry: libraries that end with the process would print where they were
                signal.signal(number, lambda *_: os._exit(130))


def _leave_terminal() -> None:
    """A terminal that hung up takes nothing any more: what is written to it would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):  # a terminal that is gone says that it is none
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


async def _unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`; raises Interrupted when `stop` is set first."""
    result = await unless_set(stop, work)
    if result is None and stop.is_set():
        raise Interrupted
    return result  # type: ignore[return-value]  # None only where that is what the work returns
