#!/usr/bin/env bash
# with_servers.sh COMMAND...: run COMMAND where the tests' servers can be had.
#
# Native ones where apt or the machine itself has them: tests can kill and pause those.
# Else Docker's, which are given by address and only serve the tests that leave them be.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

has() { command -v "$1" >/dev/null 2>&1; }

runs_docker() { has docker && docker info >/dev/null 2>&1; }

wanted=
for server in etcd consul zookeeper; do
    given=LEADERSHIP_TEST_${server^^}
    [ -n "${!given:-}" ] || wanted="$wanted $server"
done

if has apt-get && has dpkg-deb; then
    # shellcheck disable=SC2086
    [ -z "$wanted" ] || "$here/install.sh" $wanted
    # No stores: the tests that need them say so themselves.
    "$here/install.sh" haproxy faketime chromium || true
elif [ -z "$wanted" ]; then
    :
elif runs_docker; then
    # shellcheck disable=SC2086
    docker compose --project-directory "$here/../.." up -d --wait $wanted
    export LEADERSHIP_TEST_ETCD=${LEADERSHIP_TEST_ETCD:-127.0.0.1:2379}
    export LEADERSHIP_TEST_CONSUL=${LEADERSHIP_TEST_CONSUL:-127.0.0.1:8500}
    export LEADERSHIP_TEST_ZOOKEEPER=${LEADERSHIP_TEST_ZOOKEEPER:-127.0.0.1:2181}
else
    for program in etcd etcdctl consul zookeeper; do
        has "$program" || {
            echo "with_servers.sh: no $program, and neither apt nor a running Docker to get it by" >&2
            exit 1
        }
    done
fi
exec "$@"
