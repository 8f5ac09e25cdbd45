"""What a client without a key can do to the door: long heads, slow ones, many connections."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from reward_service.api.connections import network_of
from reward_service.child import RunningService, start_in_subprocess
from reward_service.settings import ServiceSettings
from tests.reward_service import door_attacks as attacks
from tests.waiting import until

SETTINGS = ServiceSettings(
    port=0,
    rewards=("gsm8k_format",),
    num_workers=1,
    header_timeout_s=1.0,
    idle_timeout_s=1.5,
    max_header_bytes=20_000,
    max_headers=50,
    max_connections=620,
    max_connections_per_address=600,
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with start_in_subprocess(SETTINGS, log_path=tmp_path_factory.mktemp("door") / "log") as service:
        yield service


@pytest.fixture
def port(service: RunningService) -> int:
    return int(service.url.rpartition(":")[2])


def test_one_endless_header_holds_nobody_up(port: int) -> None:
    with attacks.asking(port) as others:
        answer = attacks.one_long_header(port, 60_000_000)
    assert answer in (b"HTTP/1.1 431 Request Header Fields Too Large", b"(closed)")
    assert others.num_answers
    assert not others.failures


@pytest.mark.parametrize(
    "attack",
    [
        lambda port: attacks.many_headers(port, 51),
        lambda port: attacks.many_headers(port, 100_000),
        lambda port: attacks.send_all(port, b"GET /" + b"x" * 400_000 + b" HTTP/1.1\r\n\r\n"),
        lambda port: attacks.send_all(port, attacks.START, b"a: " + b"x" * 25_000 + b"\r\n\r\n"),
        lambda port: attacks.one_long_trailer(port, 1_000_000),
        lambda port: attacks.send_all(
            port, b"POST /v1/score HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;", b"x" * 400_000
        ),
    ],
    ids=["fields", "many fields", "address", "field", "trailer", "extension"],
)
def test_a_head_is_bounded_wherever_it_grows(port: int, attack: object) -> None:
    answer = attack(port)  # type: ignore[operator]
    assert answer.startswith(b"HTTP/1.1 431") or answer in (b"(closed)", b"")


def test_heads_within_the_limits_pass(port: int) -> None:
    assert attacks.many_headers(port, 45).startswith(b"HTTP/1.1 200")
    assert attacks.send_all(port, attacks.START, b"a: " + b"x" * 15_000, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
    body = b"x" * 200_000
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(body[:100]), body[:100]) for _ in range(2000)) + b"0\r\n\r\n"
    head = b"POST /v1/score HTTP/1.1\r\nhost: a\r\n"
    assert attacks.send_all(port, head + b"transfer-encoding: chunked\r\n\r\n", chunked).startswith(b"HTTP/1.1 422")
    assert attacks.send_all(port, head + b"content-length: 200000\r\n\r\n", body).startswith(b"HTTP/1.1 422")


@pytest.mark.parametrize(
    ("begin", "drip"),
    [(attacks.START, b"x"), (b"", b""), (attacks.WHOLE, b""), (attacks.WHOLE, b"\r\n"), (attacks.WHOLE, b"G")],
    ids=["slow heads", "silent", "idle", "line ends", "slow second heads"],
)
def test_500_slow_connections_are_closed_while_others_are_served(port: int, begin: bytes, drip: bytes) -> None:
    with attacks.asking(port) as others:
        closed = attacks.stay(port, 500, begin=begin, drip=drip, every_s=0.1, patience_s=60)
    assert len(closed) == 500
    assert not others.failures


def test_a_request_that_came_in_time_is_answered_by_a_service_that_got_no_processor(service: RunningService) -> None:
    """It is stopped for longer than a head may take; the head is there when it goes on."""
    for _ in range(10):  # where this test itself gets no processor in between, the connections end in order
        spent_s, answers = stopped_between(service)
        if spent_s < SETTINGS.header_timeout_s / 2:
            break
    assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * 2


def stopped_between(service: RunningService) -> tuple[float, list[bytes]]:
    """Seconds from what lets the connections' times run until the stop, and what came on an idle connection and on one
    in the middle of a head."""
    port = int(service.url.rpartition(":")[2])
    address = ("127.0.0.1", port)
    with socket.create_connection(address, timeout=60) as idle, socket.create_connection(address, timeout=60) as begun:
        began = time.monotonic()
        idle.sendall(attacks.WHOLE)
        first = b""
        while not first.endswith(b"}"):  # head and body may come apart, and the body would be read as the next answer
            first += idle.recv(4096)
        begun.sendall(attacks.START)
        os.kill(service.process.pid, signal.SIGSTOP)
        spent_s = time.monotonic() - began
        try:
            begun.sendall(b"\r\n")
            idle.sendall(attacks.WHOLE)
            time.sleep(SETTINGS.idle_timeout_s + 0.5)  # what runs out is the stopped process's time
        finally:
            os.kill(service.process.pid, signal.SIGCONT)
        return spent_s, [read_some(begun), read_some(idle)]


def read_some(connection: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionError):
        return connection.recv(4096)
    return b""


def test_a_body_that_goes_on_after_the_answer_is_cut(port: int) -> None:
    begin = b"GET /healthz HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n"
    assert len(attacks.stay(port, 5, begin=begin, drip=b"x", every_s=0.1, patience_s=60)) == 5


def test_a_request_has_one_answer_though_its_body_goes_on(port: int) -> None:
    heard = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        while more := read_some(connection):
            heard += more
    assert heard.count(b"HTTP/1.1") == 1


def test_an_offer_to_speak_http_2_is_passed_over(port: int) -> None:
    """Java's client and curl's --http2 make it with each first request, and mean HTTP/1.1 if nobody takes it up."""
    body = b'{"rewards": [{"name": "gsm8k_format"}], "items": [{"completion": "x"}]}'
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    head = b"POST /v1/score HTTP/1.1\r\nhost: a\r\n%scontent-length: %d\r\n\r\n" % (offer, len(body))
    assert attacks.send_all(port, head + body).startswith(b"HTTP/1.1 200")


def test_who_does_not_read_is_cut(port: int, service: RunningService) -> None:
    """With a reset, so that the kernel keeps nothing for it either."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", port))
        own_port = connection.getsockname()[1]
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n" * 300)

        def is_cut() -> bool:
            there = psutil.Process(service.process.pid).net_connections()
            return not any(one.raddr and one.raddr.port == own_port for one in there)

        assert connection.recv(1)  # before, it may not have been accepted yet
        until(is_cut, 60)
        with pytest.raises(ConnectionResetError):
            read_all(connection)
    assert "Traceback" not in service.log_path.read_text()


def read_all(connection: socket.socket) -> None:
    while connection.recv(2**20):
        pass


def test_connections_of_an_address_are_counted(port: int) -> None:
    def answer(connection: socket.socket) -> bytes:
        connection.settimeout(20)
        return connection.recv(4096)

    opened = [socket.create_connection(("127.0.0.1", port)) for _ in range(600)]
    with socket.create_connection(("127.0.0.1", port)) as one_more:
        assert b"429" in answer(one_more)
    others = [socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)) for _ in range(20)]
    with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.3", 0)) as one_more:
        assert b"503" in answer(one_more)
    for connection in (*opened, *others):
        connection.close()


def test_a_host_has_one_ipv4_address_and_a_whole_64_of_ipv6() -> None:
    assert network_of("10.0.0.1") == "10.0.0.1" != network_of("10.0.0.2")
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert network_of("fe80::1%eth0") == network_of("fe80::2")
    assert network_of("") == ""
