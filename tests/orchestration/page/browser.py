"""A headless Chromium that opens a page and does as it is told, over its DevTools protocol."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.waiting import until


class Page:
    """An open page."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._numbers = connection, count(1)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        """As if the window had this size."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self._connection.recv(timeout=60))).get("id") != number:
            pass  # events
        return answer["result"]


@contextmanager
def opened(chromium: str, uri: str) -> Iterator[Page]:
    """A page, loaded; the browser ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # its children may still be writing
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command = [chromium, *options, f"--user-data-dir={profile}", uri]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            told = Path(profile, "DevToolsActivePort")
            until(lambda: told.is_file() and len(told.read_text().split()) == 2, 60)
            port = told.read_text().split()[0]
            with connect(f"ws://127.0.0.1:{port}{_target(port)}", proxy=None, max_size=None) as connection:
                opened_page = Page(connection)
                loaded = f"complete {uri}"  # it begins with an empty page
                until(lambda: opened_page.evaluate("document.readyState + ' ' + location.href") == loaded, 60)
                yield opened_page
        finally:
            process.terminate()
            process.wait(60)


def _target(port: str) -> str:
    from urllib.request import ProxyHandler, build_opener

    opener = build_opener(ProxyHandler({}))

    def pages() -> list[str]:
        targets = json.load(opener.open(f"http://127.0.0.1:{port}/json/list", timeout=60))
        return [str(one["webSocketDebuggerUrl"]) for one in targets if one["type"] == "page"]

    until(lambda: bool(pages()), 60)
    return "/" + pages()[0].split("/", 3)[3]
