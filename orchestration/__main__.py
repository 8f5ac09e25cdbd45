"""`rlvr`, and `python -m orchestration`: an installation of the clients alone gets a sentence, not a traceback."""

from __future__ import annotations

import sys


def main() -> int:
    """The command line, where its libraries are installed."""
    try:
        return _run()
    except KeyboardInterrupt:  # before there is anything to stop: the imports take a second or two
        print("rlvr: interrupted", file=sys.stderr)
        return 130


def _run() -> int:
    if sys.argv[1:3] == ["bench", "gpu"]:  # for machines that have torch and little else
        from orchestration.bench.gpu.command import main as bench_gpu

        return bench_gpu(sys.argv[3:])
    try:
        from orchestration.cli import main as run
    except ModuleNotFoundError as error:
        needed = "the command line needs rlvr[service], and training rlvr[cpu] or rlvr[cuda]"
        print(f"rlvr: {error.name} is not installed here; {needed}", file=sys.stderr)
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
