#!/bin/sh
# apt.sh PACKAGE... : install Debian packages, with the builder's mirrors, settings and certificates if it gives any.
# They are read where the secrets are mounted and written nowhere.
set -eu
export DEBIAN_FRONTEND=noninteractive
if [ -f /run/secrets/apt_conf ]; then export APT_CONFIG=/run/secrets/apt_conf; fi
get() {
    set -- "$@" -o Acquire::Retries=3
    if [ -f /run/secrets/apt_sources ]; then
        set -- "$@" -o Dir::Etc::SourceList=/run/secrets/apt_sources -o Dir::Etc::SourceParts=/dev/null
    fi
    if [ -f /run/secrets/ca ]; then set -- "$@" -o Acquire::https::CAInfo=/run/secrets/ca; fi
    apt-get -qq "$@"
}
get update
# Without waiting for the disk after every file: a build that is cut off starts anew anyway.
get install -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io "$@" >/tmp/apt.log \
    || { tail -n 20 /tmp/apt.log >&2; exit 1; }
apt-get clean
rm -rf /var/lib/apt/lists/* /tmp/apt.log
