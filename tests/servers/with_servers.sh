#!/usr/bin/env bash
# with_servers.sh COMMAND...: run COMMAND where the tests' servers can be had.
#
# Native ones where apt or the machine itself has them: tests can kill and pause those.
# Else Docker's, which are given by address and only serve the tests that leave them be.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

has() { command -v "$1" >/dev/null 2>&1; }

if [ -n "${LEADERSHIP_TEST_ETCD:-}" ]; then
    :
elif has apt-get && has dpkg-deb; then
    "$here/install.sh" etcd
elif has etcd && has etcdctl; then
    :
elif has docker && docker info >/dev/null 2>&1; then
    docker compose --project-directory "$here/../.." up -d --wait etcd
    export LEADERSHIP_TEST_ETCD=127.0.0.1:2379
else
    echo "with_servers.sh: no etcd: this machine has neither apt, nor etcd, nor a running Docker" >&2
    exit 1
fi

if [ -n "${LEADERSHIP_TEST_CONSUL:-}" ]; then
    :
elif has apt-get && has dpkg-deb; then
    "$here/install.sh" consul
elif has consul; then
    :
elif has docker && docker info >/dev/null 2>&1; then
    docker compose --project-directory "$here/../.." up -d --wait consul
    export LEADERSHIP_TEST_CONSUL=127.0.0.1:8500
else
    echo "with_servers.sh: no consul: this machine has neither apt, nor consul, nor a running Docker" >&2
    exit 1
fi
exec "$@"
