"""Our own sources as a zip archive on `sys.path`: the code that a registered version runs."""

from __future__ import annotations

import zipfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# What serving never imports; and what a machine compiles for itself, which an archive can't hold.
LEFT_OUT = ("__pycache__", "cli", "registry", "training", "alignment", "evaluation", "exporting", "native")
COMPILED = (".so", ".pyc")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_code(archive: Path) -> None:
    """Write the archive; the same sources give the same bytes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(PACKAGE.rglob("*")):
            name = path.relative_to(PACKAGE)
            if path.is_file() and path.suffix not in COMPILED and not set(LEFT_OUT).intersection(name.parts):
                entry = zipfile.ZipInfo(f"{PACKAGE.name}/{name.as_posix()}", _EPOCH)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                file.writestr(entry, path.read_bytes())
