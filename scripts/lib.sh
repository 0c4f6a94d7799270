# shellcheck shell=bash
# Common code of the scripts in this directory; source it, do not run it.

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export ROOT

# Debian leaves the sbin directories out of an ordinary user's PATH; ip, nginx and tcpdump live there.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

if [[ -t 1 && -z "${NO_COLOR:-}" ]]; then
    BOLD=$'\e[1m' RED=$'\e[31m' GREEN=$'\e[32m' YELLOW=$'\e[33m' PLAIN=$'\e[0m'
else
    BOLD='' RED='' GREEN='' YELLOW='' PLAIN=''
fi
export BOLD RED GREEN YELLOW PLAIN

say() { printf '%s\n' "$*"; }
title() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }
warn() { printf '%s%s%s\n' "$YELLOW" "$*" "$PLAIN" >&2; }
die() {
    printf '%s%s: %s%s\n' "$RED" "${0##*/}" "$*" "$PLAIN" >&2
    exit 1
}
usage_error() {
    printf '%s: %s (try --help)\n' "${0##*/}" "$*" >&2
    exit 2
}

# The comment block under a script's first line is its help text.
print_help() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }

# Commands to run when the script ends, however it ends; the last one registered runs first.
CLEANUPS=()
on_exit() { CLEANUPS=("$*" "${CLEANUPS[@]}"); }
run_cleanups() {
    local status=$? command
    # A second Ctrl-C must not cut the cleaning short.
    trap '' INT TERM HUP
    set +e
    for command in "${CLEANUPS[@]}"; do eval "$command"; done
    exit "$status"
}
trap run_cleanups EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "\"$*\" needs root, and there is no sudo: run it as root first"
    fi
}

# The Debian package that brings a program.
package_of() {
    case "$1" in
        cc) echo build-essential ;;
        ip | bridge | tc) echo iproute2 ;;
        unshare | nsenter | setpriv) echo util-linux ;;
        sysctl) echo procps ;;
        nginx) echo nginx-light ;;
        dig) echo bind9-dnsutils ;;
        ping) echo iputils-ping ;;
        nft) echo nftables ;;
        dovecot) echo dovecot-imapd ;;
        perf) echo linux-perf ;;
        scapy) echo python3-scapy ;;
        in.tftpd) echo tftpd-hpa ;;
        tftp) echo tftp-hpa ;;
        turnserver) echo coturn ;;
        *) echo "$1" ;;
    esac
}

# Programs of the given list that are not here.
missing_of() {
    local program
    for program in "$@"; do have "$program" || echo "$program"; done
}

# Install, by package name, what brings the given programs. Says what it does; silent when nothing is missing.
need() {
    local program packages=()
    for program in $(missing_of "$@"); do packages+=("$(package_of "$program")"); done
    ((${#packages[@]})) || return 0
    have apt-get || die "install these packages first, this host has no apt: ${packages[*]}"
    say "installing ${packages[*]}"
    apt_install "${packages[@]}" || die "apt could not install: ${packages[*]}"
    for program in "$@"; do have "$program" || die "$(package_of "$program") is installed, yet there is no $program"; done
}

# An installed nginx or unbound would start at once, on this host's own addresses. A policy-rc.d that
# answers 101 ("forbidden") keeps it from that; somebody else's policy stays.
forbid_daemons() {
    [[ ! -e /usr/sbin/policy-rc.d ]] || return 0
    printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
    as_root chmod 755 /usr/sbin/policy-rc.d
    on_exit 'as_root rm -f /usr/sbin/policy-rc.d'
}

apt_install() {
    local log
    log=$(mktemp)
    forbid_daemons
    if ! ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1; then apt_run update >"$log" 2>&1 || true; fi
    # A failed first try mostly means stale lists.
    if ! apt_run install -y --no-install-recommends "$@" >"$log" 2>&1; then
        if ! { apt_run update && apt_run install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
            tail -n 20 "$log" >&2
            rm -f "$log"
            return 1
        fi
    fi
    rm -f "$log"
    # The programs are looked up anew.
    hash -r
}

apt_run() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"; }

# What `cargo build` needs. A toolchain is not ours to install: rustup's way in is the user's choice.
need_build_tools() {
    [[ -x "$HOME/.cargo/bin/cargo" ]] && PATH="$HOME/.cargo/bin:$PATH"
    have cargo || die "no Rust toolchain: install one from https://rustup.rs and start again"
    need cc
}

# Build the release binary and set GATUN to its path; a GATUN from the environment is taken as it is.
build_gatun() {
    if [[ -n "${GATUN:-}" ]]; then
        [[ -x "$GATUN" ]] || die "GATUN=$GATUN is no program"
        return 0
    fi
    need_build_tools
    say "building gatun (release)"
    (cd "$ROOT" && cargo build --release --locked --quiet --bin gatun)
    GATUN="${CARGO_TARGET_DIR:-$ROOT/target}/release/gatun"
    export GATUN
}

# Wait until a command succeeds: wait_for SECONDS COMMAND…
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}
