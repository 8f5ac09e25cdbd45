"""Ends with 0 if the Ray node of this container, head or worker, answers; `ray_healthcheck.py [PORT]` of its agent."""

import sys
from urllib.request import ProxyHandler, build_opener

TIMEOUT_S = 4


def main() -> int:
    port = sys.argv[1] if len(sys.argv) > 1 else "52365"
    opener = build_opener(ProxyHandler({}))
    try:
        # Ray asks for no token here.
        with opener.open(f"http://127.0.0.1:{port}/api/local_raylet_healthz", timeout=TIMEOUT_S):
            return 0
    except OSError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
