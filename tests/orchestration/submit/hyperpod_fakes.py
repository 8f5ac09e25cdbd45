"""What HyperPod has in front of a Ray dashboard, in small: an API server of Kubernetes, and a gateway with TLS.

Both listen on loopback. The API server keeps objects, deletes what a deleted owner owned, prints a pod's log, hands
services on to an address, and issues RayDashboardConnections. The gateway exchanges their token for a cookie, and lets
nobody without that cookie through to the dashboard.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

USER_TOKEN = "token-of-a-user"
CONNECTION_TOKEN = "token-of-a-connection"
COOKIE = "ray_session=cookie-of-a-session"

_OBJECTS = re.compile(r"/(?:apis/ray.io/v1|api/v1)/namespaces/([^/]+)/(rayjobs|secrets|configmaps)(?:/([^/]+))?$")
_PODS = re.compile(r"/api/v1/namespaces/([^/]+)/pods(?:/([^/]+)/log)?$")
_SERVICE = re.compile(r"/api/v1/namespaces/([^/]+)/services/([^/]+)/proxy/(.*)$")
_CONNECTIONS = re.compile(
    r"/apis/connection.access.sagemaker.amazonaws.com/v1alpha1/namespaces/([^/]+)/raydashboardconnections$"
)


class FakeKubernetes:
    """An API server; `refuse[(method, plural)]` is a status and a message to answer with, `hang` what never answers."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.refuse: dict[tuple[str, str], tuple[int, str]] = {}
        self.hang: set[str] = set()
        self.calls: list[str] = []
        self.pods: dict[str, list[str]] = {}
        self.pauses_s: list[float] = []
        """In front of each next line of a log."""
        self.dashboard = ""
        self.gateway = ""
        self.address = ""

    @contextmanager
    def serving(self) -> Iterator[FakeKubernetes]:
        kubernetes = self

        class Handler(_Handler):
            api = kubernetes

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            self.address = f"http://127.0.0.1:{server.server_port}"
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield self
            finally:
                server.shutdown()

    def kubeconfig(self, folder: Path) -> Path:
        """A file with one context, `hyperpod`."""
        tree = {
            "current-context": "hyperpod",
            "contexts": [{"name": "hyperpod", "context": {"cluster": "eks", "user": "me"}}],
            "clusters": [{"name": "eks", "cluster": {"server": self.address}}],
            "users": [{"name": "me", "user": {"token": USER_TOKEN}}],
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(tree))
        return path


class _Handler(BaseHTTPRequestHandler):
    api: FakeKubernetes
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        kind = next(
            (k for k in ("rayjobs", "secrets", "configmaps", "pods", "services") if f"/{k}" in path), "connections"
        )
        self.api.calls.append(f"{self.command} {path}")
        if kind in self.api.hang:
            time.sleep(3)
        if self.headers.get("Authorization") != f"Bearer {USER_TOKEN}":
            self._send(401, _status(401, "Unauthorized"))
        elif (self.command, kind) in self.api.refuse:
            status, message = self.api.refuse[self.command, kind]
            self._send(status, message if "page not found" in message else _status(status, message))
        elif match := _OBJECTS.search(path):
            self._object(*match.groups(), body=body)
        elif match := _PODS.search(path):
            self._pods(match[2], query)
        elif match := _SERVICE.search(path):
            self._service(match[3])
        elif match := _CONNECTIONS.search(path):
            url = f"{self.api.gateway}/bearer-auth?token={CONNECTION_TOKEN}"
            self._send(201, {**json.loads(body), "status": {"connectionUrl": url}})
        else:
            self._send(404, "404 page not found")

    def _object(self, namespace: str, plural: str, name: str | None, *, body: bytes) -> None:
        objects = self.api.objects
        if self.command == "POST":
            made = json.loads(body)
            key = plural, made["metadata"]["name"]
            if key in objects:
                self._send(409, _status(409, f'{plural} "{key[1]}" already exists'))
                return
            made["metadata"] |= {"uid": f"uid-{len(self.api.calls)}", "namespace": namespace}
            objects[key] = made
            self._send(201, made)
        elif (plural, str(name)) not in objects:
            self._send(404, _status(404, f'{plural}.ray.io "{name}" not found'))
        elif self.command == "GET":
            self._send(200, objects[plural, str(name)])
        else:
            gone = objects.pop((plural, str(name)))
            for key, other in list(objects.items()):
                if any(o["uid"] == gone["metadata"]["uid"] for o in other["metadata"].get("ownerReferences", ())):
                    del objects[key]
            self._send(200, _status(200, "deleted"))

    def _pods(self, name: str | None, query: Mapping[str, list[str]]) -> None:
        if name is None:
            stamp = "2026-11-21T10:00:00Z"
            pods = [
                {"metadata": {"name": n, "creationTimestamp": stamp}, "status": {"phase": "Running"}}
                for n in self.api.pods
            ]
            self._send(200, {"kind": "PodList", "apiVersion": "v1", "items": pods})
            return
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for number, line in enumerate(self.api.pods[name]):
            if "follow" in query and number and self.api.pauses_s:
                time.sleep(self.api.pauses_s.pop())
            try:
                self.wfile.write(f"2026-11-21T10:00:{number:02}.000000000Z {line}\n".encode())
            except OSError:  # the client gave up waiting
                break
        self.close_connection = True

    def _service(self, path: str) -> None:
        request = urllib.request.Request(f"{self.api.dashboard}/{path}", method=self.command)
        # As the real one, it hands on all headers but the one that was for it.
        if token := self.headers.get("X-Ray-Authorization"):
            request.add_header("X-Ray-Authorization", token)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
                self._send(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            self._send(error.code, error.read().decode())

    def _send(self, status: int, body: Mapping[str, Any] | str) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the client gave up waiting
            self.close_connection = True


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "message": message, "code": code}


@contextmanager
def gateway(dashboard: str, *, token: str, certificate: tuple[Path, Path]) -> Iterator[str]:
    """The address of a TLS gateway before a dashboard, to which it shows `token`."""
    host, port = urlsplit(dashboard).hostname, urlsplit(dashboard).port

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        target = first.split(" ")[1]
        if target == f"/bearer-auth?token={CONNECTION_TOKEN}":
            writer.write(f"HTTP/1.1 302 Found\r\nSet-Cookie: {COOKIE}; Path=/; Secure\r\n".encode())
            writer.write(b"Location: /\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif not any(line.lower().startswith("cookie:") and COOKIE in line for line in lines):
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            is_upgrade = any(line.lower().startswith("upgrade:") for line in lines)
            kept = [line for line in lines if is_upgrade or not line.lower().startswith("connection:")]
            kept += [f"Authorization: Bearer {token}", *([] if is_upgrade else ["Connection: close"])]
            inner_reader, inner_writer = await asyncio.open_connection(host, port)
            inner_writer.write("\r\n".join([first, *kept, "", ""]).encode())
            await asyncio.wait(
                [asyncio.create_task(_pipe(reader, inner_writer)), asyncio.create_task(_pipe(inner_reader, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
            inner_writer.close()
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve_one, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "gateway.pem", folder / "gateway.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
