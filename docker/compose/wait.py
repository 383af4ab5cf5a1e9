"""Wait until MLflow of docker/compose.yaml answers, and print how to use it.

    python3 docker/compose/wait.py [FILE [SECONDS]]      # default: .ava/services/services.env 300

Compose's own `--wait` takes a service that has done its work and ended for one that failed. Needs nothing but Python.
"""

from __future__ import annotations

import sys
import time
import urllib.request
from pathlib import Path

FILE = Path(".ava/services/services.env")
SECONDS = 300.0
ANYWHERE = ("", "0.0.0.0")  # noqa: S104 - no address to bind to, but one that was bound


def main(arguments: list[str]) -> int:
    """0 once it answers; 1 if it doesn't in time."""
    file = Path(arguments[0]) if arguments else FILE
    seconds = float(arguments[1]) if len(arguments) > 1 else SECONDS
    given = dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line and line[0] != "#")
    host = given.get("BIND_ADDRESS", "")
    address = f"http://{'127.0.0.1' if host in ANYWHERE else host}:{given.get('MLFLOW_PORT') or '5000'}"
    until = time.monotonic() + seconds
    while not _answers(address):
        if time.monotonic() > until:
            print(f"{address}: no answer after {seconds:.0f} s: see `make services-logs`", file=sys.stderr)
            return 1
        time.sleep(0.5)
    print(f"export AVA_TRACKING_URI={address}")
    return 0


def _answers(address: str) -> bool:
    try:
        # No proxy is asked for an address of this machine or of its network.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{address}/health", timeout=5):
            return True
    except (OSError, ValueError):  # nobody there yet, or no success (HTTPError)
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
