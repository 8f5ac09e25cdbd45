"""What SageMaker starts on every host, by Python alone: the container's first process, and under it our own.

SageMaker sends SIGTERM to process 1 alone. As that this one passes it on and reaps what others leave behind; the
container ends with it. Started by a shell it works too, but cannot be stopped in order.
"""

from __future__ import annotations

import os
import signal
import sys

CODE = "/opt/ml/input/data/code"
FAILURE = "/opt/ml/output/failure"
_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


def main() -> int:
    """Returns the host's exit status."""
    if os.getpid() != 1:
        return _host()
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)  # until they are waited for: none is lost
    child = os.fork()
    if child:
        return _first_process(child)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    return _host()


def _first_process(child: int) -> int:
    while True:
        number = signal.sigwait(_WATCHED)
        if number != signal.SIGCHLD:
            os.kill(child, number)
            continue
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:  # one SIGCHLD may stand for several
            pid, status = ended
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code


def _host() -> int:
    sys.path.insert(0, CODE)
    try:
        from orchestration.submit.sagemaker.host.run import main as host
    except ImportError as error:
        reason = f"the image lacks what a run needs ({error}); build it from docker/rollout_learner.Dockerfile"
        with open(FAILURE, "w", encoding="utf-8") as failure:
            failure.write(reason)
        print(reason, file=sys.stderr)
        return 1
    os.chdir(CODE)
    return host()


if __name__ == "__main__":
    sys.exit(main())
