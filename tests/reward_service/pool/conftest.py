"""A service on a machine that others keep busy: one core of this one, so that other tests have the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from reward_service.child import start_in_subprocess
from reward_service.settings import ServiceSettings
from tests.reward_service.pool.busy_machine import busy


@pytest.fixture(scope="module")
def busy_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log, cores = tmp_path_factory.mktemp("busy") / "log", os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})  # children inherit it
    try:
        with start_in_subprocess(ServiceSettings(port=0), log_path=log, timeout_s=300) as service, busy(5):
            os.sched_setaffinity(0, cores)
            yield service.url
    finally:
        os.sched_setaffinity(0, cores)
