"""What is sent to the interpreter in the sandbox: the modules of `inside`, and the job."""

from __future__ import annotations

import importlib.util
import marshal
from collections.abc import Mapping
from functools import lru_cache
from importlib.abc import InspectLoader
from types import CodeType
from typing import Any

_PACKAGES = ("reward_service", "reward_service.sandbox", "reward_service.sandbox.inside")
_NAMES = (
    "values",
    "clock",
    "remote",
    "contents",
    "peer",
    "judge",
    "beside",
    "seccomp",
    "namespaces",
    "runner",
    "supervisor",
)
INSIDE = tuple(f"{_PACKAGES[-1]}.{name}" for name in _NAMES)
"""In the order of their imports; the last one has `main`. They are never imported here, only sent."""

BOOT = """
import sys, marshal
f = sys.stdin.buffer
modules, job = marshal.loads(f.read(int.from_bytes(f.read(8), "big")))
for name, code in modules:
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.main(job)
"""


@lru_cache
def _modules(magic: str) -> tuple[tuple[str, CodeType | str], ...]:
    as_source = magic != importlib.util.MAGIC_NUMBER.hex()
    return (*((name, "") for name in _PACKAGES), *((name, _code(name, as_source=as_source)) for name in INSIDE))


def _code(module: str, *, as_source: bool) -> CodeType | str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and isinstance(spec.loader, InspectLoader)  # noqa: PT018
    code = spec.loader.get_source(module) if as_source else spec.loader.get_code(module)
    assert code is not None
    return code


def message(job: Mapping[str, Any], magic: str) -> bytes:
    """What `BOOT` reads from standard input; marshal, as this direction is trusted."""
    return framed((_modules(magic), dict(job)))


def framed(content: Any) -> bytes:
    """Plain data as trusted code in the sandbox reads it."""
    body = marshal.dumps(content, 4)
    return len(body).to_bytes(8, "big") + body
