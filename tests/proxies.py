"""A proxy that lets nothing through and keeps what came: for tests of what must not be sent to one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@dataclass
class RecordingProxy:
    """`seen` has a line and the Authorization header, if any, of each request."""

    url: str = ""
    seen: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Of whoever should use it, as tools of all kinds read it."""
        return dict.fromkeys(VARIABLES, self.url) | {"NO_PROXY": "", "no_proxy": ""}


@contextmanager
def recording_proxy() -> Iterator[RecordingProxy]:
    proxy = RecordingProxy()

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if self.raw_requestline and self.parse_request():
                proxy.seen.append(f"{self.requestline} {self.headers.get('Authorization', '')}".strip())
                self.send_error(502)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        proxy.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            server.shutdown()
