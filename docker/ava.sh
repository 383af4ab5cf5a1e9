#!/bin/sh
# ava.sh : build the wheel of /build, install it into /opt/ava, and leave of /out only what came with it.
set -eu
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_QUIET=1
pip="/opt/tools/bin/python -m pip"
# Nothing is fetched: hatchling is here, and the dependencies are a layer of their own.
$pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .
find /out -type f >/tmp/before
$pip --python /opt/ava/bin/python install --no-compile --no-deps --no-index --find-links /wheels ava-moe
xargs -d '\n' rm -f </tmp/before
find /out -type l -delete
find /out -mindepth 1 -type d -empty -delete
ls /out/opt/ava/lib/python3*/site-packages/ava_core/kernels/_native-*.so >/dev/null \
    || { echo "ava.sh: the native kernels were not compiled" >&2; exit 1; }
