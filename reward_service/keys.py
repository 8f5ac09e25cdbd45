"""API keys: who may use the service, and how much.

A key is `rlvr_ID_SECRET`: 12 hexadecimal digits that name it, and 256 random bits, url-safe. The file holds the SHA-256
of the secret alone. A fast hash is enough: slow ones are there to make guessing passwords expensive, and nobody guesses
256 random bits, however fast each guess is; and a slow one would be paid with every request.

Not covered: a key sent over plain HTTP can be read on the way; use TLS beyond loopback.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import msgspec

from reward_service.errors import KeysError, KeysUnavailableError, KeyUsageError, UnauthorizedError
from reward_service.rates import Caller, SharedRates, TokenBucket

logger = logging.getLogger(__name__)

DEFAULT_KEYS_FILE: Final = "reward_keys.json"
ANONYMOUS: Final = "anonymous"

_SECRET_BYTES: Final = 32
_MAX_HEADER_CHARS: Final = 1024
_KEY: Final = re.compile(r"rlvr_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_LOCK_TIMEOUT_S: Final = 10.0
_NO_SECRET: Final = hashlib.sha256(b"").hexdigest()


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A key as it is kept: without its secret."""

    id: str
    name: str
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    """Of the secret, in hexadecimal."""
    created: str
    """ISO 8601, UTC."""
    revoked: str | None = None
    """When it was; None: it was not."""
    expires: str | None = None
    """ISO 8601, UTC: from then on it is not valid; None: it does not expire."""
    items_per_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Items a second it may have scored in the long run; None: no limit."""
    burst: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Items it may have scored at once after a pause; None: those of ten seconds."""

    def __post_init__(self) -> None:
        if self.expires is not None and datetime.fromisoformat(self.expires).tzinfo is None:
            raise ValueError(f"expires {self.expires!r} has no time zone")

    @property
    def state(self) -> str:
        """For people: valid, until when, or since when not."""
        if self.revoked is not None:
            return f"revoked {self.revoked}"
        if self.expires is None:
            return "valid"
        return f"{'expires' if self.is_valid(datetime.now(UTC)) else 'expired'} {self.expires}"

    def is_valid(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < datetime.fromisoformat(self.expires))


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    keys: tuple[ApiKey, ...] = ()


def add_key(
    path: Path,
    name: str,
    *,
    items_per_s: float | None = None,
    burst: int | None = None,
    expires: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Makes a key.

    Args:
        path: the file of keys; made if it is not there.
        name: whose key it is; stands in the audit log.
        items_per_s: items a second it may have scored; None: no limit.
        burst: items at once after a pause; None: those of some seconds.
        expires: from then on it is not valid; None: it does not expire.

    Returns:
        The key, and its text, which is kept nowhere: whoever loses it needs another key.

    Raises:
        KeyUsageError: the name or the limits are not fit.
        KeysError: another valid key has the name, or the file cannot be changed.
    """
    if not _NAME.fullmatch(name):
        raise KeyUsageError(f"{name!r:.80} is not a key's name; use at most 64 letters, digits and . _ @ -")
    if name == ANONYMOUS:
        raise KeyUsageError(f"{ANONYMOUS!r} is what callers without a key are called; choose another name")
    if items_per_s is not None and not 0 < items_per_s < 1e9:
        raise KeyUsageError(
            f"a rate limit of {items_per_s:g} items per second lets nothing through, or all; give a positive number"
        )
    if burst is not None and (burst < 1 or items_per_s is None):
        raise KeyUsageError(f"a burst of {burst} items has to be at least 1, and needs a rate limit")
    if expires is not None and expires <= datetime.now(UTC):
        raise KeyUsageError(f"the key would have expired at {expires.isoformat()} already; give a time to come")
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    key = ApiKey(
        id=secrets.token_hex(6),
        name=name,
        sha256=hashlib.sha256(secret.encode()).hexdigest(),
        created=_now(),
        items_per_s=items_per_s,
        burst=burst,
        expires=None if expires is None else expires.astimezone(UTC).isoformat(timespec="seconds"),
    )
    with _locked(path):
        keys = read_keys(path) if path.exists() else ()
        if any(other.name == name and other.is_valid(datetime.now(UTC)) for other in keys):
            raise KeysError(f"there is a valid key named {name!r}; revoke it first, or choose another name")
        _write(path, (*keys, key))
    return key, f"rlvr_{key.id}_{secret}"


def read_expiry(text: str) -> datetime:
    """When a key expires: `30d`, `12h`, or a date or time in ISO 8601, in UTC unless it names a zone.

    Raises:
        KeysError: it is none of these.
    """
    if span := re.fullmatch(r"([0-9]{1,5})([dh])", text):
        return datetime.now(UTC) + timedelta(**{"days" if span[2] == "d" else "hours": int(span[1])})
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise KeyUsageError(
            f"{text!r:.80} is not a time; write 30d, 12h, 2027-01-31 or 2027-01-31T12:00+01:00"
        ) from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def revoke_key(path: Path, which: str) -> ApiKey:
    """Revokes a key; a running service refuses it within a second.

    Args:
        path: the file of keys.
        which: the key's id, or the name of a valid key.

    Returns:
        The key as it is now.

    Raises:
        KeysError: there is no such valid key, or the file cannot be read or changed.
    """
    with _locked(path):
        keys = read_keys(path)
        for index, key in enumerate(keys):
            if which in (key.id, key.name) and key.revoked is None:
                revoked = msgspec.structs.replace(key, revoked=_now())
                _write(path, (*keys[:index], revoked, *keys[index + 1 :]))
                return revoked
    raise KeysError(f"{path} has no valid key {which!r:.80}; `rlvr reward keys list` shows those it has")


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """All keys of a file, revoked ones too; KeysError if it cannot be read."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise KeysError(f"cannot read the API keys {path}: {error.strerror}; `rlvr reward keys add` makes it") from None
    except msgspec.MsgspecError as error:
        raise KeysError(f"{path} is not a file of API keys: {error}") from None
    if file.version != 1:
        raise KeysError(f"{path} is of version {file.version}, and this program reads version 1; update it")
    return file.keys


class KeyRing:
    """The keys of a file, read again when it changes, so that a revoked key stops working within a second.

    Raises KeysError if the file cannot be read at the start. If it cannot be read later nobody is let in until it can:
    a revocation might be in it.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        reload_s: float = 1.0,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
        rates: SharedRates | None = None,
    ) -> None:
        """`rates`: where several processes keep what the keys have left; None: this one is alone."""
        self._rates = rates
        self._path = path
        self._today = today
        self._clock = clock
        self._reload_s = reload_s
        self._keys: Mapping[str, ApiKey] = {}
        self._callers: dict[str, Caller] = {}
        self._problem: str | None = None
        self._stamp = _stamp(path)
        self._load()
        if self._problem is not None:
            raise KeysError(self._problem)
        self._look_again_at = clock() + reload_s

    def __repr__(self) -> str:
        return f"KeyRing({str(self._path)!r}, {len(self._keys)} keys)"

    def check(self, authorization: str | None, x_api_key: str | None = None) -> Caller:
        """Who sent these headers; the key file is read again where it has changed.

        Args:
            authorization: `Bearer KEY`, or Basic with the key as password; None: was not sent.
            x_api_key: The key itself, which goes before; None: was not sent.

        Raises:
            UnauthorizedError: With the same words for an unknown, a wrong, a revoked and an expired key.
            KeysUnavailableError: The file cannot be read now.
        """
        if self._clock() >= self._look_again_at:
            self._refresh()
        if self._problem is not None:
            raise KeysUnavailableError("the API keys of this service cannot be read now; its log says more")
        text = presented_key(authorization, x_api_key)
        if text is None:
            raise UnauthorizedError("this service needs an API key: send Authorization: Bearer KEY")
        match = _KEY.fullmatch(text)
        key_id, secret = match.groups() if match else ("", "")
        key = self._keys.get(key_id)
        # An unknown id takes the same way, so that time does not tell which ids there are.
        given = hashlib.sha256(secret.encode()).hexdigest()
        right = hmac.compare_digest(given, _NO_SECRET if key is None else key.sha256)
        if key is None or not right or not key.is_valid(self._today()):
            raise UnauthorizedError("the API key is not valid here; ask for another one")
        return self._callers[key.id]

    def _refresh(self) -> None:
        self._look_again_at = self._clock() + self._reload_s
        stamp = _stamp(self._path)
        if stamp != self._stamp or self._problem is not None:
            self._stamp = stamp
            self._load()

    def _load(self) -> None:
        try:
            keys = {key.id: key for key in read_keys(self._path)}
        except KeysError as error:
            if str(error) != self._problem:
                logger.error("%s; nobody is let in until that is mended", error)
            self._problem = str(error)
            return
        callers = {}
        for index, key in enumerate(keys.values()):  # a bucket stays as empty as it is, unless its key changed
            known = key == self._keys.get(key.id)
            callers[key.id] = self._callers[key.id] if known else _caller(key, self._clock, self._rates, index)
        self._keys, self._callers, self._problem = keys, callers, None


def presented_key(authorization: str | None, x_api_key: str | None) -> str | None:
    """The key that the headers carry, unchecked.

    Args:
        authorization: Bearer, or Basic: the password, or the user name where the password is empty, as in
            `http://KEY@host`.
        x_api_key: Goes before it.

    Returns:
        None where there is none.
    """
    if x_api_key is not None:
        return x_api_key.strip()[:_MAX_HEADER_CHARS]
    scheme, _, value = (authorization or "")[:_MAX_HEADER_CHARS].partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value or None
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return None
        return password or user or None
    return None


def binding_refusal(host: str, *, has_keys: bool) -> str | None:
    """Why the service may not listen on an address: without keys it is loopback only.

    Args:
        host: An IP address, or `localhost`.
        has_keys: Whether callers need a key.

    Returns:
        One sentence with the remedy; None: it may.
    """
    if has_keys or host == "localhost":
        return None
    try:
        if ipaddress.ip_address(host).is_loopback:
            return None
    except ValueError:
        return f"host {host!r} is not an IP address; use 127.0.0.1"
    return (
        f"refusing to listen on {host}: without API keys anybody who reaches it could use it; "
        "use host 127.0.0.1, or make a key by `rlvr reward keys add` and name its file in keys_file"
    )


def binding_warning(host: str, *, has_keys: bool, has_tls: bool) -> str | None:
    """What an operator should know of listening there; None if there is nothing."""
    if not has_keys:
        return f"there are no API keys: every process of this machine may use the service, and only through {host}"
    if not has_tls and binding_refusal(host, has_keys=False) is not None:
        return f"listening on {host} without TLS: API keys can be read on the way; give a certificate, or use a proxy"
    return None


def _caller(key: ApiKey, clock: Callable[[], float], rates: SharedRates | None, index: int) -> Caller:
    if key.items_per_s is None:
        return Caller(name=key.name)
    burst = float(key.burst) if key.burst is not None else max(1.0, 10 * key.items_per_s)
    bucket = TokenBucket(key.items_per_s, burst, clock)
    if rates is not None:
        bucket.state, bucket.lock = rates.of(index), rates.lock  # type: ignore[assignment]  # has what is needed of it
    return Caller(name=key.name, bucket=bucket)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _write(path: Path, keys: tuple[ApiKey, ...]) -> None:
    """Beside it and renamed; `mkstemp` makes files of mode 0600."""
    data = msgspec.json.format(msgspec.json.encode(_File(version=1, keys=keys)), indent=2)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise KeysError(f"cannot write the API keys {path}: {error.strerror}") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One at a time: two that add keys at once must not lose one."""
    from filelock import FileLock, Timeout  # here, as callers of the service read this module without it

    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_TIMEOUT_S, mode=0o600)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise KeysError(f"another process has held the lock of {path} for {_LOCK_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise KeysError(f"cannot write beside the API keys {path}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
