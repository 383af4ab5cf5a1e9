#!/bin/sh
# pip.sh PYTHON PIP-ARGUMENT... : run pip with the builder's configuration and certificates, if it gives any.
# pip.sh PYTHON --run ARGUMENT... : run PYTHON so, for a program that calls pip.
# Quietly: what pip says by itself names the indexes.
set -eu
python=$1
shift
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_QUIET=1
if [ -f /run/secrets/pip_conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi
if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
if [ "$1" = --run ]; then
    shift
    exec "$python" "$@"
fi
exec "$python" -m pip "$@"
