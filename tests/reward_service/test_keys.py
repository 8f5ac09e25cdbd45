"""API keys: made, listed, revoked, checked, limited; no secret anywhere but in the hands of its owner."""

from __future__ import annotations

import base64
import logging
import os
import pickle
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from reward_service.errors import KeysError, KeysUnavailableError, RateLimitedError, UnauthorizedError
from reward_service.keys import (
    KeyRing,
    add_key,
    binding_refusal,
    binding_warning,
    read_expiry,
    read_keys,
    revoke_key,
)
from reward_service.rates import TokenBucket

ROOT = Path(__file__).parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_a_key_opens(path: Path) -> None:
    _, text = add_key(path, "alice")
    ring = KeyRing(path)
    for headers in (
        (f"Bearer {text}", None),
        (f"bearer  {text} ", None),
        (None, text),
        (basic("trainer", text), None),
        (basic("", text), None),
        (basic(text, ""), None),
        ("Bearer something else", text),
    ):
        assert ring.check(*headers).name == "alice"


def test_everything_else_does_not(path: Path) -> None:
    key, text = add_key(path, "alice")
    _, revoked = add_key(path, "bob")
    revoke_key(path, "bob")
    ring = KeyRing(path)
    _, _, secret = text.split("_", 2)
    wrong = [
        "", "x", text[:-1], text + "x", text.upper(), secret, key.sha256, f"rlvr_{key.id}_", f"rlvr__{secret}",
        f"rlvr_{'0' * 12}_{secret}", f"rlvr_{key.id}_{'A' * 43}", f"rlvr_{key.id}_{key.sha256}", revoked,
        "rlvr_" + "é" * 20, "\0" * 10, "x" * 10**6,
    ]  # fmt: skip
    for presented in wrong:
        for headers in ((f"Bearer {presented}", None), (None, presented), (basic("u", presented), None)):
            with pytest.raises(UnauthorizedError) as caught:
                ring.check(*headers)
            assert secret not in str(caught.value)
    for header in (None, "Bearer", "Basic", "Basic !!!", "Basic /w==", text, f"Digest {text}", f"Token {text}"):
        with pytest.raises(UnauthorizedError, match="needs an API key"):
            ring.check(header)


def test_unknown_wrong_and_revoked_keys_hear_the_same(path: Path) -> None:
    key, _ = add_key(path, "alice")
    _, revoked = add_key(path, "bob")
    revoke_key(path, "bob")
    ring = KeyRing(path)
    answers = set()
    for text in (revoked, f"rlvr_{key.id}_{'A' * 43}", f"rlvr_{'0' * 12}_{'A' * 43}"):
        with pytest.raises(UnauthorizedError) as caught:
            ring.check(f"Bearer {text}")
        answers.add(str(caught.value))
    assert len(answers) == 1


def test_the_file_holds_no_secret(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key, text = add_key(path, "alice", items_per_s=5)
    secret = text.split("_", 2)[2]
    assert len(secret) == 43, "256 bits in base64"
    assert path.stat().st_mode & 0o777 == 0o600
    ring = KeyRing(path)
    caller = ring.check(f"Bearer {text}")
    for shown in (path.read_text(), repr(key), repr(ring), repr(caller), repr(read_keys(path)), caplog.text):
        assert secret not in shown


def test_revoking_works_while_it_runs(path: Path) -> None:
    clock = Clock()
    _, text = add_key(path, "alice")
    ring = KeyRing(path, clock=clock)
    revoke_key(path, "alice")
    clock.now += 0.5
    ring.check(None, text)  # the file is looked at once a second
    clock.now += 0.6
    with pytest.raises(UnauthorizedError):
        ring.check(None, text)
    _, again = add_key(path, "alice")
    clock.now += 1.1
    assert ring.check(None, again).name == "alice"


def test_a_file_that_cannot_be_read_lets_nobody_in(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    _, text = add_key(path, "alice")
    ring = KeyRing(path, clock=clock)
    good = path.read_bytes()
    for broken in (b"{", b'{"version": 2}', b'{"version": 1, "keys": [{"id": "x"}]}', None):
        path.unlink() if broken is None else path.write_bytes(broken)
        for _ in range(3):
            clock.now += 1.1
            with pytest.raises(KeysUnavailableError):
                ring.check(None, text)
    assert len(caplog.records) == 4, "once for each problem"
    path.write_bytes(good)
    clock.now += 1.1
    assert ring.check(None, text).name == "alice"
    with pytest.raises(KeysError, match="cannot read the API keys"):
        KeyRing(path.with_name("none"))


@pytest.mark.parametrize("name", ["", "a b", "a\n", "-x", "x" * 65, "é", "anonymous", "a/b"])
def test_names_that_cannot_be(path: Path, name: str) -> None:
    with pytest.raises(KeysError, match="name"):
        add_key(path, name)


def test_settings_of_keys_that_cannot_be(path: Path) -> None:
    add_key(path, "alice")
    with pytest.raises(KeysError, match="there is a valid key named 'alice'"):
        add_key(path, "alice")
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(KeysError, match="lets nothing through"):
            add_key(path, "bob", items_per_s=rate)
    with pytest.raises(KeysError, match="needs a rate limit"):
        add_key(path, "bob", burst=3)
    with pytest.raises(KeysError, match="no valid key 'bob'"):
        revoke_key(path, "bob")
    with pytest.raises(KeysError, match="cannot write beside"):
        add_key(Path("/dev/null/keys"), "bob")
    assert [key.name for key in read_keys(path)] == ["alice"]


def test_commands_at_once_lose_no_key(path: Path) -> None:
    code = "import sys; from pathlib import Path; from reward_service.keys import add_key\n"
    code += "for n in range(5): add_key(Path(sys.argv[1]), f'{sys.argv[2]}{n}')"
    adding = [subprocess.Popen([sys.executable, "-c", code, path, name], cwd=ROOT) for name in "abc"]
    assert [process.wait(60) for process in adding] == [0, 0, 0]
    assert sorted(key.name for key in read_keys(path)) == sorted(f"{name}{n}" for name in "abc" for n in range(5))
    assert sorted(os.listdir(path.parent)) == [".keys.json.lock", "keys.json"]


def test_token_bucket() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=10, burst=20, clock=clock)
    assert bucket.take(20) == 0
    assert bucket.take(5) == pytest.approx(0.5)  # nothing is left, 10 come in a second
    clock.now += 0.4
    assert bucket.take(5) == pytest.approx(0.1)
    clock.now += 0.1
    assert bucket.take(5) == 0
    clock.now += 1000
    assert bucket.take(50) == 0, "more than the burst passes when the bucket is full"
    assert bucket.take(1) == pytest.approx(3.1)  # 30 in debt, and the one itself
    clock.now += 3.2
    assert bucket.take(1) == 0
    assert bucket.take(0) == 0


def test_a_key_has_its_own_rate_which_a_reload_does_not_fill(path: Path) -> None:
    clock = Clock()
    _, slow = add_key(path, "slow", items_per_s=10, burst=20)
    _, free = add_key(path, "free")
    ring = KeyRing(path, clock=clock)
    ring.check(None, slow).spend(20)
    ring.check(None, free).spend(10**9)
    add_key(path, "other")
    clock.now += 1.5
    with pytest.raises(RateLimitedError, match="key 'slow' may have 10 items scored per second") as caught:
        ring.check(None, slow).spend(20)
    assert caught.value.retry_after_s == pytest.approx(0.5)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.retry_after_s) == (str(caught.value), caught.value.retry_after_s)
    ring.check(None, slow).spend(15)


def test_a_burst_is_ten_seconds_by_default(path: Path) -> None:
    _, text = add_key(path, "alice", items_per_s=0.01)
    bucket = KeyRing(path).check(None, text).bucket
    assert bucket is not None
    assert bucket.burst == 1


@pytest.mark.parametrize(
    ("host", "has_keys", "refused"),
    [
        ("127.0.0.1", False, False), ("127.9.9.9", False, False), ("::1", False, False), ("localhost", False, False),
        ("0.0.0.0", False, True), ("::", False, True), ("10.0.0.1", False, True), ("example.org", False, True),
        ("127.0.0.1.example.org", False, True), ("", False, True), ("::ffff:10.0.0.1", False, True),
        ("0.0.0.0", True, False), ("10.0.0.1", True, False),
    ],
)  # fmt: skip
def test_without_keys_it_is_loopback_only(host: str, has_keys: bool, refused: bool) -> None:
    assert (binding_refusal(host, has_keys=has_keys) is not None) is refused


def test_what_an_operator_should_know() -> None:
    assert "no API keys" in str(binding_warning("127.0.0.1", has_keys=False, has_tls=False))
    assert "without TLS" in str(binding_warning("0.0.0.0", has_keys=True, has_tls=False))
    assert binding_warning("127.0.0.1", has_keys=True, has_tls=False) is None
    assert binding_warning("0.0.0.0", has_keys=True, has_tls=True) is None


def test_a_key_that_expired_is_refused_and_its_name_is_free(path: Path) -> None:
    now = [datetime.now(UTC)]
    key, text = add_key(path, "alice", expires=now[0] + timedelta(hours=1))
    ring = KeyRing(path, today=lambda: now[0])
    assert ring.check(f"Bearer {text}").name == "alice"
    now[0] += timedelta(minutes=59)
    ring.check(f"Bearer {text}")
    now[0] += timedelta(minutes=1)
    with pytest.raises(UnauthorizedError, match="not valid here"):
        ring.check(f"Bearer {text}")
    with pytest.raises(KeysError, match="valid key named"):
        add_key(path, "alice")
    expired = msgspec.structs.replace(key, expires="2020-01-01T00:00:00+00:00")
    path.write_bytes(msgspec.json.encode({"version": 1, "keys": [expired]}))
    add_key(path, "alice")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T12:00", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00+01:00", datetime(2027, 1, 31, 11, tzinfo=UTC)),
    ],
)
def test_expiry_is_read(text: str, expected: datetime) -> None:
    assert read_expiry(text) == expected


def test_expiry_as_a_span_and_what_is_none(path: Path) -> None:
    assert timedelta(hours=47) < read_expiry("2d") - datetime.now(UTC) <= timedelta(days=2)
    assert timedelta(hours=1) < read_expiry("2h") - datetime.now(UTC) <= timedelta(hours=2)
    for text in ("soon", "", "-1d", "2d2h", "1e9d"):
        with pytest.raises(KeysError, match="is not a time"):
            read_expiry(text)
    key, _ = add_key(path, "bob")
    path.write_bytes(
        msgspec.json.encode({"version": 1, "keys": [{**msgspec.to_builtins(key), "expires": "2027-01-01"}]})
    )
    with pytest.raises(KeysError, match="has no time zone"):
        read_keys(path)
    with pytest.raises(KeysError, match="a time to come"):
        add_key(path.with_name("other"), "alice", expires=read_expiry("2020-01-01"))
