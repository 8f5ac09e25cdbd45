"""Ray's start on this machine, or the way into one that runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from orchestration.cluster.actors import actor_environment
from orchestration.cluster.environment import NODE_ENVIRONMENT, ON_LOOPBACK, without_token
from orchestration.cluster.upkeep.sessions import claim_session
from orchestration.cluster.upkeep.whereabouts import claim_node
from orchestration.errors import MachineError, one_line
from orchestration.machine.facts import collect
from orchestration.machine.model_sizes import model_size
from orchestration.machine.needs import object_store_bytes
from orchestration.settings.config import RunConfig
from orchestration.sockets import free_port, may_use_dashboard_port


def join_ray(config: RunConfig, *, namespace: str) -> Any:
    """Join the Ray of `config.ray_address`, or start one here; what `ray.init` gives.

    Raises MachineError when that does not come about.
    """
    environment = dict(NODE_ENVIRONMENT)
    if config.ray_address is None:
        # Inherited by every process of the node, so that actors need none of their own: a process with settings of
        # its own Ray starts anew, and those it has started already are left idle.
        environment |= without_token() | actor_environment("cuda" if collect().gpus else "cpu")
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    claim_node()
    common = {"logging_level": "ERROR", "log_to_driver": False, "namespace": namespace}
    if config.ray_address is not None:
        return _init(config.ray_address, 1, address=config.ray_address, **common)
    with _on_loopback():
        context = _init(
            "this machine",
            2,  # its parts wait for each other for no longer than 15 s, which a busy machine may need
            address="local",  # not one that somebody else left running here
            include_dashboard=config.dashboard,
            dashboard_port=None if not config.dashboard or may_use_dashboard_port() else free_port(),
            object_store_memory=object_store_bytes(model_size(config.model.name), config.learner),
            **common,
        )
    claim_session(Path(context.address_info["session_dir"]))
    return context


def _init(where: str, tries: int, **options: Any) -> Any:
    try:
        with _signal_handlers_kept(), _ends_blocked():
            return ray.init(**options)
    except Exception as error:  # it raises all kinds, plain ones too
        with suppress(Exception):
            leave_ray()
        if tries > 1:
            return _init(where, tries - 1, **options)
        slow = "; the machine is too busy: try again when it has less to do" if "timed out" in str(error) else ""
        raise MachineError(f"Ray did not start on {where}: {one_line(error).rstrip('.')}{slow}") from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """What Ray starts in the block, and what that starts, listens on loopback alone.

    Ray puts another of the machine's addresses in place of loopback, but on macOS; it reads whether this is one when it
    is imported, so the name is set too, and set back: a process may join a cluster of several hosts later.
    """
    from ray._private import ray_constants

    kept = {name: os.environ.get(name) for name in ON_LOOPBACK}, ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(ON_LOOPBACK)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = kept[1]
        for name, value in kept[0].items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and dies of it; whoever asked for it before the block has it again after."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    if threading.current_thread() is threading.main_thread():  # no other may
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def _ends_blocked() -> Iterator[None]:
    """For this thread and what is started from it. Where SIGTERM goes to all processes of a run, as systemd and SLURM
    send it, or SIGHUP, as a terminal's end does, Ray's own would end before the run can, and with them, at once and by
    exit code 1, this process. Ray does the same with SIGINT."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_ray() -> None:
    """End what `join_ray` began. What Ray started on this host is killed, since it does not hear SIGTERM; and so are
    the agents that a raylet ends only if it does."""
    node, agents = ray._private.worker.global_worker.node, list[psutil.Process]()
    for started in [] if node is None else node.all_processes.values():
        for each in started:
            with suppress(psutil.Error):
                agents += psutil.Process(each.process.pid).children()
            each.process.terminate = each.process.kill
    ray.shutdown()
    for agent in agents:
        with suppress(psutil.Error):
            agent.kill()


def take_back_sigterm() -> None:
    """The same where another thread has started Ray, which may not: by the main thread, after it. Until then Ray's
    handler lies below Python's, prints a stack and aborts the process."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    signal.siginterrupt(signal.SIGTERM, False)
