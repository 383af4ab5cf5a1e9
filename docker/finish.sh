#!/bin/sh
# finish.sh [PYTHON LIBRARY [REGEX]] : make /out the same on every build: byte code without dates, one date for all files.
# Byte code is checked against nothing when it is loaded: the image is read-only. Files that match REGEX get none.
set -eu
if [ $# -gt 0 ]; then
    find /out -type d -name __pycache__ -prune -exec rm -rf {} +
    # Some packages carry files that are no Python 3; -q -q says nothing of them. A fixed seed: sets keep their order.
    # -S: what a .pth file has loaded into the compiler would be compiled with other references to its constants.
    PYTHONHASHSEED=0 "$1" -S -m compileall -q -q -j 0 --invalidation-mode unchecked-hash -s /out -p / \
        ${3:+-x "$3"} "/out$2" || true
fi
find /out -exec touch --no-dereference --date=1980-01-01T00:00:00Z {} +
