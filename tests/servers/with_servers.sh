#!/usr/bin/env bash
# with_servers.sh COMMAND...: run COMMAND where the tests' servers can be had.
#
# Native ones where apt or the machine itself has them: tests can kill and pause those.
# Else Docker's, which are given by address and only serve the tests that leave them be.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

has() { command -v "$1" >/dev/null 2>&1; }

runs_docker() { has docker && docker info >/dev/null 2>&1; }

if has apt-get && has dpkg-deb; then
    wanted=
    [ -n "${LEADERSHIP_TEST_ETCD:-}" ] || wanted="etcd"
    [ -n "${LEADERSHIP_TEST_ZOOKEEPER:-}" ] || wanted="$wanted zookeeper"
    # shellcheck disable=SC2086
    [ -z "$wanted" ] || "$here/install.sh" $wanted
elif runs_docker; then
    docker compose --project-directory "$here/../.." up -d --wait
    export LEADERSHIP_TEST_ETCD=${LEADERSHIP_TEST_ETCD:-127.0.0.1:2379}
    export LEADERSHIP_TEST_ZOOKEEPER=${LEADERSHIP_TEST_ZOOKEEPER:-127.0.0.1:2181}
elif [ -z "${LEADERSHIP_TEST_ETCD:-}" ] && ! { has etcd && has etcdctl; }; then
    echo "with_servers.sh: no etcd: this machine has neither apt, nor etcd, nor a running Docker" >&2
    exit 1
fi
exec "$@"
