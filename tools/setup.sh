#!/usr/bin/env bash
# Make a bare Debian 12 ready: tools/setup.sh [EXTRA DEBIAN PACKAGE...]
# Installs only what is missing, makes .venv, builds the templates. Running it again changes nothing and takes a moment.
# `runsc` is taken from where Debian has one that can be used.
set -euo pipefail
cd "$(dirname "$0")/.."

TEMPLATES=(base python)
LOG=$(mktemp)
trap 'rm -f "$LOG"' EXIT

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Run a command with its talk kept aside, shown only if the last of three tries fails.
quietly() {
    local try
    for try in 1 2 3; do
        if "$@" >"$LOG" 2>&1; then return 0; fi
        if [ "$try" != 3 ]; then say "that failed; trying again"; sleep $((try * 3)); fi
    done
    tail -n 30 "$LOG" >&2
    fail "failed three times: $*"
}

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Debian's own Python first: it is the one whose packages we know how to install.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3.13 python3.12 python3.11 python3; do
        if recent "$candidate"; then command -v "$candidate"; return 0; fi
    done
    return 1
}

missing_packages() {
    local python package
    if ! python=$(find_python); then
        echo python3 python3-venv
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo python3-venv
    fi
    command -v mmdebstrap >/dev/null || echo mmdebstrap
    command -v mount >/dev/null || echo mount
    # Egress policies need it, and only root's server has them.
    [ "$(id -u)" != 0 ] || [ -x /usr/sbin/nft ] || echo nftables
    # The templates are Debian 13: an early Debian 12 does not know its keys yet.
    dpkg --compare-versions "$(dpkg-query -W -f '${Version}' debian-archive-keyring 2>/dev/null)" ge 2023.3+deb12u2 \
        || echo debian-archive-keyring
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
    [ "$(id -u)" = 0 ] || command -v newuidmap >/dev/null || echo uidmap
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok' || echo "$package"
    done
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 \
        install --no-install-recommends "$@" </dev/null
}

install_missing() {
    local missing
    mapfile -t missing < <(missing_packages "$@" | tr ' ' '\n')
    [ "${#missing[@]}" -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail "install these by hand, then run this again: ${missing[*]}"
    [ "$(id -u)" = 0 ] || fail "as root: apt-get install --no-install-recommends ${missing[*]}"
    say "installing ${missing[*]}"
    # Old package lists name files that are gone from the mirror: then, and only then, they are fetched anew.
    if ! apt_install "${missing[@]}" >"$LOG" 2>&1; then
        say "fetching package lists"
        quietly apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update
        quietly apt_install "${missing[@]}"
    fi
}

# gVisor. Debian 12's own is a build of 2022 that cannot be used; its backports have one that can, signed by Debian
# like everything else. The sources entry is for this one package and is gone afterwards.
isolators() {
    local built release mirror place options
    built=$(runsc --version 2>/dev/null | grep -oE '[0-9]{8}' | head -n 1) || true
    [ "${built:-0}" -lt 20240729 ] || return 0
    command -v apt-get >/dev/null || fail "install gVisor's runsc of 2024-07-29 or later by hand, then run this again"
    [ "$(id -u)" = 0 ] || fail "as root: install gVisor's runsc of 2024-07-29 or later"
    say "installing runsc"
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    if [ "$release" != bookworm ]; then
        install_missing runsc
        return 0
    fi
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2>/dev/null \
        | awk '$2 == "bookworm" {print $1; exit}') || true
    place=$(mktemp -d)
    chmod 755 "$place"
    mkdir -p "$place/lists/partial"
    if id _apt >/dev/null 2>&1; then chown -R _apt "$place/lists"; fi
    printf '%s\n' 'Types: deb' "URIs: ${mirror:-http://deb.debian.org/debian}" 'Suites: bookworm-backports' \
        'Components: main' 'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' >"$place/backports.sources"
    options=(-o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$place" -o "Dir::State::Lists=$place/lists")
    quietly apt-get -q "${options[@]}" -o Acquire::Retries=3 update
    quietly apt_install "${options[@]}" -t bookworm-backports runsc
    rm -rf "$place"
}

make_venv() {
    local python=$1 stamp=.venv/ringfence.stamp wanted
    wanted="$("$python" -V) $PWD $(sha256sum <pyproject.toml)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && .venv/bin/python -c 'import ringfence' 2>/dev/null; then
        return 0
    fi
    say "making .venv with $("$python" -V)"
    "$python" -m venv --clear .venv
    say "installing ringfence and its dependencies"
    quietly .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
    printf '%s' "$wanted" >"$stamp"
}

# The api gave up the right to write here before it imports: what is not compiled now it would compile at each start.
compile_ours() {
    .venv/bin/python -m compileall -q src
}

build_templates() {
    # The builder tells its own progress, and does nothing for a template that is built.
    .venv/bin/ringfence templates build "${TEMPLATES[@]}" >/dev/null
}

packages=()
for package in "$@"; do
    if [ "$package" = runsc ]; then isolators; else packages+=("$package"); fi
done
install_missing ${packages[@]+"${packages[@]}"}
python=$(find_python) || fail "no Python 3.11 or newer was found"
make_venv "$python"
compile_ours
build_templates
