# shellcheck shell=bash
# scripts/lab serve: how a server of the lab is set up for a method. Sourced by it.
#
# With direct and tunnel the server holds the virtual addresses and answers clients itself:
# - The addresses are on its loopback device, each as a host route's worth (/32, /128).
# - It must not answer ARP for them, nor ask under them: arp_ignore=1, arp_announce=2. NDP needs no such
#   setting: Linux answers it for addresses of the interface that was asked only.
# - Its way to the clients does not lead through the gateway.

# serve NODE METHOD VIP… [--kernel]
command_serve() {
    local node=${1:-} method=${2:-} kernel='' argument
    local -a vips=()
    [[ $node =~ ^rs[1-4]$ ]] || usage_error "serve: \"$node\" is no server; rs1 to rs4 are"
    TOPOLOGY=$(topology_up)
    [[ -n $TOPOLOGY ]] || die "the lab is down: scripts/lab up"
    exists "$node" || die "the topology $TOPOLOGY has no $node"
    for argument in "${@:3}"; do
        case $argument in
            --kernel) kernel=1 ;;
            -*) usage_error "serve: unknown option \"$argument\"" ;;
            *) vips+=("$argument") ;;
        esac
    done
    [[ -z $kernel || $method == tunnel ]] || usage_error "serve: --kernel is for the method tunnel"
    case $method in
        nat) ((${#vips[@]} == 0)) || usage_error "serve $node nat takes no address: the gateway holds them" ;;
        direct | tunnel) ((${#vips[@]})) || usage_error "serve $node $method: for which virtual addresses?" ;;
        *) usage_error "serve: unknown method \"$method\"; nat, direct and tunnel are there" ;;
    esac
    if [[ $method == direct && $node == rs4 ]]; then
        die "rs4 is not on the gateway's segment: direct is for rs1 to rs3"
    fi

    serve_nothing "$node"
    if [[ $method == nat ]]; then return 0; fi
    netns "$node" sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
    if [[ $node != rs4 ]]; then default_routes "$node" 10.20.0.254 fd20::254; fi
    if [[ $method == tunnel && -z $kernel ]]; then
        real_server "$node" "${vips[@]}"
        return 0
    fi
    for argument in "${vips[@]}"; do
        if [[ $argument == *:* ]]; then argument+="/128 dev lo nodad"; else argument+="/32 dev lo"; fi
        configure "$node" <<<"addr add $argument"
    done
    if [[ -n $kernel ]]; then decapsulate "$node"; fi
}

# Back to an ordinary host, whose default route leads to the gateway.
serve_nothing() {
    local node=$1
    stop_real_server "$node"
    netns "$node" tc qdisc del dev eth0 clsact 2>/dev/null || true
    ip -n "$PREFIX$node" addr flush dev lo scope global
    netns "$node" sysctl -qw net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.all.arp_announce=0
    if [[ $node != rs4 ]]; then default_routes "$node" "10.20.0.$(gateway_host)" "fd20::$(gateway_host)"; fi
}

default_routes() {
    configure "$1" <<EOF
route replace default via $2 dev eth0
route replace default via $3 dev eth0
EOF
}

# The gateway on the servers' segment is 10.20.0.N and fd20::N.
gateway_host() { if [[ $TOPOLOGY == bridged ]]; then echo 2; else echo 1; fi; }

# ---- tunnel: the kernel's side, without an ipip module ----

decapsulate() {
    local node=$1 object
    have clang || die "no clang on this host: scripts/setup test installs it"
    object=$(mktemp "${TMPDIR:-/tmp}/gatun-decapsulate.XXXXXX.o")
    # shellcheck disable=SC2064
    on_exit "rm -f '$object'"
    # Debian keeps asm/ of the headers in a directory of its own, which a cross compilation does not search.
    clang -O2 -Wall -Wextra -Werror -target bpf -I"/usr/include/$(uname -m)-linux-gnu" -DGATEWAY="$(gateway_host)" \
        -c "$ROOT/scripts/lab.d/decapsulate.bpf.c" -o "$object"
    netns "$node" tc qdisc add dev eth0 clsact
    netns "$node" tc filter add dev eth0 ingress bpf direct-action object-file "$object" section tc ||
        die "this kernel, or this user, loads no BPF program"
}

# ---- tunnel: gatun's own side ----

real_server() {
    local node=$1 log vip gatun
    local -a options=()
    gatun=${GATUN:-${CARGO_TARGET_DIR:-$ROOT/target}/release/gatun}
    [[ -x $gatun ]] || die "no gatun at $gatun: build it (cargo build --release), or name another one with GATUN="
    for vip in "${@:2}"; do options+=(--vip "$vip"); done
    log=$(real_server_log "$node")
    netns "$node" "$gatun" real-server "${options[@]}" --tunnel ipip,gue \
        --gateway "10.20.0.$(gateway_host)" --gateway "fd20::$(gateway_host)" </dev/null >"$log" 2>&1 &
    disown
    if ! wait_for 5 real_server_ready_or_ended "$node" $! "${@:2}" || ! kill -0 $! 2>/dev/null; then
        cat "$log" >&2
        die "gatun real-server on $node did not start"
    fi
}

real_server_log() { echo "${TMPDIR:-/tmp}/${PREFIX}$1-real-server.log"; }

# Ready is when it holds the last of the addresses.
real_server_ready_or_ended() {
    ! kill -0 "$2" 2>/dev/null || ip -n "$PREFIX$1" -o addr | grep -qF " ${*: -1}/"
}

real_server_pids() {
    local pid
    for pid in $(ip netns pids "$PREFIX$1"); do
        if tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | sed -n 2p | grep -qx real-server; then echo "$pid"; fi
    done
}

# It undoes what it did at SIGTERM.
stop_real_server() {
    local node=$1 pids
    rm -f "$(real_server_log "$node")"
    pids=$(real_server_pids "$node")
    [[ -n $pids ]] || return 0
    # shellcheck disable=SC2086
    kill -TERM $pids
    # shellcheck disable=SC2317
    stopped() { [[ -z "$(real_server_pids "$node")" ]]; }
    wait_for 5 stopped || die "gatun real-server on $node does not end at SIGTERM"
}
