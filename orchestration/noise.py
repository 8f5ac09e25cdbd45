"""Keeps what libraries print out of what we print.

vLLM, torch and their child processes write to file descriptors 1 and 2 whatever Python's logging says; a program that
reads `rlvr eval --json` must find one JSON object on standard output and nothing else.
"""

from __future__ import annotations

import io
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from orchestration.scratch import shared_temporary_folder
from rollout_server.forking.leftovers import owned_prefix


@contextmanager
def noise_to_file(prefix: str) -> Iterator[TextIO]:
    """Send descriptors 1 and 2 to a new log file for the length of the block.

    Yields standard error as it was before, for what a person should read meanwhile.

    The file is removed when the block ends well or by Ctrl-C, or nothing was said; else it is kept, in the machine's
    folder for temporary files, and its path said on standard error.

    Args:
        prefix: Of the name of a file that is kept.
    """
    descriptor, name = tempfile.mkstemp(prefix=owned_prefix("log"), dir=shared_temporary_folder())
    path = Path(name)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    try:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        with _text(os.dup(saved[1])) as stderr:
            yield stderr
    except Exception:
        _restore(saved)
        if path.stat().st_size:
            kept = path.rename(path.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(2)}.log"))
            print(f"rlvr: what the libraries said is in {kept}", file=sys.stderr)
        else:
            path.unlink()
        raise
    except BaseException:
        _restore(saved)
        path.unlink(missing_ok=True)
        raise
    _restore(saved)
    path.unlink(missing_ok=True)


def _text(descriptor: int) -> TextIO:
    """Unbuffered, so that closing it cannot fail over what was written to a reader that went away."""
    raw = os.fdopen(descriptor, "wb", buffering=0)
    return io.TextIOWrapper(raw, encoding=sys.stderr.encoding, errors="backslashreplace", write_through=True)


def _restore(saved: tuple[int, int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for target, original in enumerate(saved, start=1):
        os.dup2(original, target)
        os.close(original)
