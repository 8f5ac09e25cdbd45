"""How the workers of a training job learn what became of it: the head answers them, beside Ray and after its end."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import httpx

from orchestration.submit.sagemaker.host.facts import NOTICE_PORT, Notice, Phase

ASK_TIMEOUT_S = 5.0
_HOST_HEADER = "X-Host"


class NoticeBoard:
    """The head's notice, served over HTTP to whoever has the cluster's token."""

    def __init__(self, address: str, *, token: str, port: int = NOTICE_PORT) -> None:
        self._notice = Notice(phase=Phase.STARTING)
        self._changed = threading.Condition()
        self._asked: set[str] = set()
        self._told: set[str] = set()
        self._server = ThreadingHTTPServer((address, port), _handler(self, token))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="notices", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> NoticeBoard:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def post(self, notice: Notice) -> None:
        with self._changed:
            self._notice = notice

    def read(self, host: str) -> Notice:
        """The notice, for `host`."""
        with self._changed:
            self._asked.add(host)
            return self._notice

    def delivered(self, host: str, notice: Notice) -> None:
        """`host` has got it."""
        if notice.ending is not None:
            with self._changed:
                self._told.add(host)
                self._changed.notify_all()

    def wait_until_told(self, workers: Iterable[str], *, timeout_s: float) -> tuple[str, ...]:
        """Wait until all workers know the ending; returns those that do not, after `timeout_s` at the latest."""
        waited_for = set(workers)
        with self._changed:
            self._changed.wait_for(lambda: waited_for <= self._told, timeout=timeout_s)
            return tuple(sorted(waited_for - self._told))


def _handler(board: NoticeBoard, token: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = ASK_TIMEOUT_S

        def do_GET(self) -> None:
            if not hmac.compare_digest(self.headers.get("Authorization", ""), f"Bearer {token}"):
                self.send_error(401)
                return
            host = self.headers.get(_HOST_HEADER, "")
            notice = board.read(host)
            body = notice.to_json().encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            board.delivered(host, notice)

        def log_message(self, format: str, *args: object) -> None:
            """A line for each question would hide the run's own."""

    return Handler


def asking() -> httpx.Client:
    """A client for `ask`; the caller closes it."""
    return httpx.Client(timeout=ASK_TIMEOUT_S, trust_env=False)  # a proxy for the internet does not know the head


def ask(http: httpx.Client, url: str, *, host: str, token: str) -> Notice | None:
    """The head's notice; None when it does not answer.

    Args:
        url: the head's.
        host: who asks.
        token: the cluster's.
    """
    try:
        answer = http.get(url, headers={"Authorization": f"Bearer {token}", _HOST_HEADER: host})
        answer.raise_for_status()
        return Notice.from_json(answer.text)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
