"""What is sent to the interpreter in the sandbox: the modules of `inside`, and the job."""

from __future__ import annotations

import importlib.util
import marshal
from collections.abc import Mapping
from functools import lru_cache
from types import CodeType, ModuleType
from typing import Any

import reward_service.sandbox.inside.namespaces as namespaces
import reward_service.sandbox.inside.runner as runner
import reward_service.sandbox.inside.seccomp as seccomp
import reward_service.sandbox.inside.supervisor as supervisor
import reward_service.sandbox.inside.values as values

_PACKAGES = ("reward_service", "reward_service.sandbox", "reward_service.sandbox.inside")
_MODULES = (values, seccomp, namespaces, runner, supervisor)
"""In the order of their imports; the last one has `main`."""

BOOT = """
import sys, marshal
f = sys.stdin.buffer
modules, job = marshal.loads(f.read(int.from_bytes(f.read(8), "big")))
for name, code in modules:
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.main(job)
"""


def _code(module: ModuleType, *, as_source: bool) -> CodeType | str:
    assert module.__spec__ is not None
    loader = module.__spec__.loader
    code = loader.get_source(module.__name__) if as_source else loader.get_code(module.__name__)  # type: ignore[union-attr]
    assert code is not None
    return code  # type: ignore[no-any-return]


@lru_cache
def _modules(magic: str) -> tuple[tuple[str, CodeType | str], ...]:
    as_source = magic != importlib.util.MAGIC_NUMBER.hex()
    inside = [(module.__name__, _code(module, as_source=as_source)) for module in _MODULES]
    return (*((name, "") for name in _PACKAGES), *inside)


def message(job: Mapping[str, Any], magic: str) -> bytes:
    """What `BOOT` reads from standard input; marshal, as this direction is trusted."""
    body = marshal.dumps((_modules(magic), dict(job)), 4)
    return len(body).to_bytes(8, "big") + body
