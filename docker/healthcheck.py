"""Ends with 0 if the reward service of this container answers, over HTTP or TLS; `healthcheck.py [PORT]`."""

import ssl
import sys
from urllib.error import HTTPError
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

TIMEOUT_S = 2.5


def main() -> int:
    port = sys.argv[1] if len(sys.argv) > 1 else "8300"
    # The certificate is for the name that clients use; it is not what is checked here.
    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=ssl._create_unverified_context()))
    problem = "no answer"
    for scheme in ("http", "https"):
        try:
            with opener.open(f"{scheme}://127.0.0.1:{port}/healthz", timeout=TIMEOUT_S):
                return 0
        except HTTPError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{problem}; {scheme}: {error}"
        except ValueError as error:  # a TLS answer to plain HTTP is no HTTP
            problem = f"{problem}; {scheme}: {error}"
    print(problem, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
