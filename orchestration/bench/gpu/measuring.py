"""The process of one part: `python -m orchestration.bench.gpu.measuring MODULE FUNCTION SETTINGS`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Measuring:
    """What a part is given."""

    cuda: bool
    """Sizes are those of a GPU, and it is there."""
    minutes: int
    scratch: str
    """A folder that is the part's own; made by the first who asks `folder`."""
    fd: int

    @property
    def device(self) -> str:
        return "cuda" if self.cuda else "cpu"

    def folder(self) -> Path:
        path = Path(self.scratch)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def say(self, case: str, **figures: Any) -> None:
        """One line of the result, at once."""
        self._write({"case": case, **figures})

    def fail(self, error: BaseException) -> None:
        """Why the part ends."""
        self._write({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self.fd, (json.dumps(line) + "\n").encode())


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    module, function, settings = argv
    measuring = Measuring(**json.loads(settings))
    os.set_inheritable(measuring.fd, False)
    try:
        getattr(importlib.import_module(module), function)(measuring)
    except BaseException as error:
        traceback.print_exc()
        measuring.fail(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
