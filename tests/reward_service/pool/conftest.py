"""A service on a machine that others keep busy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reward_service.child import start_in_subprocess
from reward_service.settings import ServiceSettings
from tests.reward_service.pool.busy_machine import busy


@pytest.fixture(scope="module")
def busy_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("busy") / "log"
    with busy(10), start_in_subprocess(ServiceSettings(port=0), log_path=log, timeout_s=300) as service:
        yield service.url
