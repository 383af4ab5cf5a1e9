"""Write the passwords of docker/compose.yaml on the first start, for this machine alone.

    python3 docker/compose/first_start.py [FILE]      # default: .ava/services/services.env, which git ignores

A file that is there stays as it is: the volumes were made with its passwords. Needs nothing but Python.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

FILE = Path(".ava/services/services.env")
NEEDED = ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")
TEMPLATE = """\
# Made by docker/compose/first_start.py for docker/compose.yaml. Who has this file has the data: keep it, tell nobody.
COMPOSE_PROJECT_NAME=ava-services
POSTGRES_PASSWORD={password}
S3_ACCESS_KEY={access_key}
S3_SECRET_KEY={secret_key}

# What may be changed; see docs/compose.md.
#MLFLOW_PORT=5000
#S3_PORT=7070
# 0.0.0.0 serves other machines, which MLflow lets do everything: see docs/compose.md first.
#BIND_ADDRESS=127.0.0.1
#ALLOWED_HOSTS=localhost:*,127.0.0.1:*,mlflow:*
#ALLOWED_ORIGINS=
"""


def main(arguments: list[str]) -> int:
    """Make the file if there is none; 2 if there is one that lacks something."""
    file = Path(arguments[0]) if arguments else FILE
    if not file.exists():
        _write(file)
        print(f"wrote {file}: passwords for the services, readable by you alone")
    given = dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line and line[0] != "#")
    missing = [name for name in NEEDED if not given.get(name, "").strip()]
    if missing:
        print(f"{file}: lacks {', '.join(missing)}: give it, or remove the file and the volumes", file=sys.stderr)
        return 2
    return 0


def _write(file: Path) -> None:
    """Write it whole, readable by its owner only; the first of two that start at once stays."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Letters, digits, - and _ only: the password is part of an address.
    text = TEMPLATE.format(
        password=secrets.token_urlsafe(32), access_key=secrets.token_hex(10), secret_key=secrets.token_urlsafe(32)
    )
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
        target.write(text)
    with suppress(FileExistsError):
        os.link(partial, file)
    partial.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
