# shellcheck shell=bash
# scripts/lab serve: how a server of the lab is set up for methods. Sourced by it.
#
# With direct and tunnel the server holds the virtual addresses and answers clients itself:
# - The addresses are on its loopback device, each alone (/32, /128). For a tunnel that gatun takes care
#   of they are on gatun's device instead.
# - It must not answer ARP for them, nor ask under them: arp_ignore=1, arp_announce=2. NDP needs no such
#   setting: Linux answers it for addresses of the interface that was asked only.
# - Its way to the clients does not lead through the gateway, which that of nat has to. A server with
#   both sends by the gateway what comes from its own address.

# The table and the preference of the rule for a server with nat beside other methods.
NAT_TABLE=100

# serve NODE SETUP…, where a SETUP is a method and its virtual addresses
command_serve() {
    local node=${1:-} method='' kernel='' word
    local -a vips=() direct=() tunnel=()
    local -A methods=()
    [[ $node =~ ^rs[1-4]$ ]] || usage_error "serve: \"$node\" is no server; rs1 to rs4 are"
    for word in "${@:2}"; do
        case $word in
            nat | direct | tunnel) method=$word methods[$word]=1 ;;
            --kernel) kernel=1 ;;
            [0-9a-f]*[.:]*)
                case $method in
                    direct) direct+=("$word") ;;
                    tunnel) tunnel+=("$word") ;;
                    *) usage_error "serve $node: $word follows neither direct nor tunnel" ;;
                esac
                ;;
            *) usage_error "serve: \"$word\" is neither a method (nat, direct, tunnel) nor an address" ;;
        esac
    done
    ((${#methods[@]})) || usage_error "serve $node: for which method?"
    [[ -z ${methods[direct]:-} ]] || ((${#direct[@]})) || usage_error "serve $node direct: for which virtual addresses?"
    [[ -z ${methods[tunnel]:-} ]] || ((${#tunnel[@]})) || usage_error "serve $node tunnel: for which virtual addresses?"
    [[ -z $kernel || -n ${methods[tunnel]:-} ]] || usage_error "serve: --kernel is for the method tunnel"
    TOPOLOGY=$(topology_up)
    [[ -n $TOPOLOGY ]] || die "the lab is down: scripts/lab up"
    exists "$node" || die "the topology $TOPOLOGY has no $node"
    [[ $node != rs4 || -z ${methods[direct]:-} ]] ||
        die "rs4 is not on the gateway's segment: direct is for rs1 to rs3"

    serve_nothing "$node"
    vips=("${direct[@]}" "${tunnel[@]}")
    ((${#vips[@]})) || return 0
    netns "$node" sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
    reply_past_the_gateway "$node" "${methods[nat]:-}"
    if [[ -n $kernel ]]; then
        hold "$node" "${vips[@]}"
        decapsulate "$node"
        return 0
    fi
    hold "$node" "${direct[@]}"
    if ((${#tunnel[@]})); then real_server "$node" "${tunnel[@]}"; fi
}

# Back to an ordinary host, whose default route leads to the gateway.
serve_nothing() {
    local node=$1 family
    stop_real_server "$node"
    netns "$node" tc qdisc del dev eth0 clsact 2>/dev/null || true
    ip -n "$PREFIX$node" addr flush dev lo scope global
    netns "$node" sysctl -qw net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.all.arp_announce=0
    for family in -4 -6; do
        ip -n "$PREFIX$node" "$family" rule del pref "$NAT_TABLE" 2>/dev/null || true
        ip -n "$PREFIX$node" "$family" route flush table "$NAT_TABLE" 2>/dev/null || true
    done
    if [[ $node != rs4 ]]; then default_routes "$node" "10.20.0.$(gateway_host)" "fd20::$(gateway_host)"; fi
}

# hold NODE VIP…
hold() {
    local node=$1 vip
    for vip in "${@:2}"; do
        if [[ $vip == *:* ]]; then vip+="/128 dev lo nodad"; else vip+="/32 dev lo"; fi
        configure "$node" <<<"addr add $vip"
    done
}

# reply_past_the_gateway NODE ALSO_NAT. rs4 does so anyway, and by nat it cannot be had.
reply_past_the_gateway() {
    local node=$1 also_nat=$2
    [[ $node != rs4 ]] || return 0
    default_routes "$node" 10.20.0.254 fd20::254
    [[ -n $also_nat ]] || return 0
    default_routes "$node" "10.20.0.$(gateway_host)" "fd20::$(gateway_host)" "table $NAT_TABLE"
    configure "$node" <<EOF
route add 10.20.0.0/24 dev eth0 table $NAT_TABLE
route add fd20::/64 dev eth0 table $NAT_TABLE
EOF
    ip -n "$PREFIX$node" rule add from "10.20.0.1${node#rs}" lookup "$NAT_TABLE" pref "$NAT_TABLE"
    ip -n "$PREFIX$node" -6 rule add from "fd20::1${node#rs}" lookup "$NAT_TABLE" pref "$NAT_TABLE"
}

# default_routes NODE ROUTER ROUTER6 [TABLE]
default_routes() {
    configure "$1" <<EOF
route replace default via $2 dev eth0 ${4:-}
route replace default via $3 dev eth0 ${4:-}
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

# The directory of a server's daemon: its log, its control socket, its record of changes.
runtime() { echo "${TMPDIR:-/tmp}/${PREFIX}$1.run"; }

real_server() {
    local node=$1 vip gatun directory
    local -a options=()
    gatun=${GATUN:-${CARGO_TARGET_DIR:-$ROOT/target}/release/gatun}
    [[ -x $gatun ]] || die "no gatun at $gatun: build it (cargo build --release), or name another one with GATUN="
    for vip in "${@:2}"; do options+=(--vip "$vip"); done
    directory=$(runtime "$node")
    mkdir -p "$directory"
    netns "$node" "$gatun" --control "$directory/control.sock" real-server "${options[@]}" --tunnel ipip,gue \
        --gateway "10.20.0.$(gateway_host)" --gateway "fd20::$(gateway_host)" --state-dir "$directory" \
        </dev/null >"$directory/log" 2>&1 &
    disown
    # Ready is when it answers.
    if ! wait_for 5 real_server_answers_or_ended "$node" $! || ! kill -0 $! 2>/dev/null; then
        cat "$directory/log" >&2
        die "gatun real-server on $node did not start"
    fi
}

real_server_answers_or_ended() {
    ! kill -0 "$2" 2>/dev/null || "$gatun" --control "$directory/control.sock" real-server --status
}

real_server_pids() {
    local pid
    for pid in $(ip netns pids "$PREFIX$1"); do
        if tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qx real-server; then echo "$pid"; fi
    done
}

# It undoes what it did at SIGTERM.
stop_real_server() {
    local node=$1 pids
    pids=$(real_server_pids "$node")
    if [[ -n $pids ]]; then
        # shellcheck disable=SC2086
        kill -TERM $pids
        wait_for 5 no_real_server "$node" || die "gatun real-server on $node does not end at SIGTERM"
    fi
    rm -rf "$(runtime "$node")"
}

no_real_server() { [[ -z "$(real_server_pids "$1")" ]]; }
