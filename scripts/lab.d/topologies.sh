# shellcheck shell=bash
# The topologies of scripts/lab: which nodes, which links, which routes. Sourced by it.

# Every node that some topology has.
# shellcheck disable=SC2034
NODES=(client gw rs1 rs2 rs3 router rs4 in1 in2 out1 out2)

nodes_of() {
    case $1 in
        routed) echo client gw rs1 rs2 rs3 router rs4 ;;
        bridged) echo client gw rs1 rs2 rs3 router ;;
        masquerade) echo gw in1 in2 out1 out2 ;;
        bare) echo client gw rs1 ;;
    esac
}

netns() { nsenter --net="/run/netns/$PREFIX$1" -- "${@:2}"; }
exists() { [[ -e "/run/netns/$PREFIX$1" ]]; }

# The topology that is up, if one is, and whole: its name is the last thing that is made, the alias of
# a loopback device, so that it lives and dies with the lab.
topology_up() {
    local topology node
    exists gw || return 0
    topology=$(ip -n "${PREFIX}gw" link show lo 2>/dev/null | sed -n 's/^ *alias gatun-lab-//p')
    for node in $(nodes_of "$topology"); do exists "$node" || return 0; done
    echo "$topology"
}

make_topology() {
    local node nodes
    nodes=$(nodes_of "$1")
    for node in $nodes; do echo "netns add $PREFIX$node"; done | ip -batch -
    for node in $nodes; do
        if [[ $node == router ]]; then node_sysctls "$node" 1; else node_sysctls "$node" 0; fi
    done
    "make_$1"
    configure gw <<<"link set lo alias gatun-lab-$1"
}

# Sysctls that a new namespace takes from this host (IPv4) are set to known values, so that the lab is
# the same everywhere: no forwarding, no reverse path filter. Duplicate address detection would keep an
# IPv6 address tentative for a second.
node_sysctls() {
    local node=$1 forwarding=$2
    # shellcheck disable=SC2016
    netns "$node" sh -ec '
        cd /proc/sys/net
        echo "$1" >ipv4/ip_forward
        echo "$1" >ipv6/conf/all/forwarding
        for key in all default; do
            echo 0 >ipv4/conf/$key/rp_filter
            echo 0 >ipv4/conf/$key/proxy_arp
            echo 0 >ipv6/conf/$key/accept_dad
            echo 0 >ipv6/conf/$key/dad_transmits
            echo 0 >ipv6/conf/$key/accept_ra
        done' sh "$forwarding"
}

# One batch of `ip` commands inside a node.
configure() { ip -n "$PREFIX$1" -batch -; }

# A veth pair made inside NODE, its other end made inside PEER. BIG TCP packets are larger than a
# virtio_net_hdr can say, so gso_max_size stays at 64 KiB whatever the kernel's default is.
veth() {
    local node=$1 name=$2 peer=$3 peer_name=$4
    echo "link add $name gso_max_size 65536 type veth peer name $peer_name gso_max_size 65536 netns $PREFIX$peer"
}

# bridge NAME MAC NODE:ITS_INTERFACE…: a bridge inside gw, with a port for each of these.
bridge() {
    local name=$1 end node
    echo "link add $name address $2 gso_max_size 65536 type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
    for end in "${@:3}"; do
        node=${end%:*}
        veth gw "$name-$node" "$node" "${end#*:}"
        echo "link set $name-$node master $name up"
    done
}

# address NAME ADDRESS…
address() {
    local a
    for a in "${@:2}"; do
        if [[ $a == *:* ]]; then echo "addr add $a dev $1 nodad"; else echo "addr add $a dev $1"; fi
    done
    echo "link set $1 up"
}

# rs1 to rs3, on the segment "lan", with their default routes.
segment_servers() {
    local n
    for n in 1 2 3; do
        configure "rs$n" <<EOF
link set lo up
$(address eth0 "10.20.0.1$n/24" "fd20::1$n/64")
route add default via $1
route add default via $2
EOF
    done
}

make_routed() {
    configure gw <<EOF
link set lo up
$(veth gw eth0 client eth0)
$(bridge lan 02:00:0a:14:00:01 rs{1,2,3}:eth0 router:eth0)
$(address eth0 198.51.100.1/24 2001:db8:1::1/64)
$(address lan 10.20.0.1/24 fd20::1/64)
EOF
    configure router <<EOF
link set lo up
$(veth router eth1 rs4 eth0)
$(veth router eth2 client eth1)
$(address eth0 10.20.0.254/24 fd20::254/64)
$(address eth1 10.30.0.254/24 fd30::254/64)
$(address eth2 192.0.2.1/24 2001:db8:2::1/64)
route add 198.51.100.0/24 via 192.0.2.2
route add 2001:db8:1::/64 via 2001:db8:2::2
route add default via 10.20.0.1
route add default via fd20::1
EOF
    configure client <<EOF
link set lo up
$(address eth0 198.51.100.2/24 2001:db8:1::2/64)
$(address eth1 192.0.2.2/24 2001:db8:2::2/64)
route add default via 198.51.100.1
route add default via 2001:db8:1::1
route add 10.30.0.0/24 via 192.0.2.1
route add fd30::/64 via 2001:db8:2::1
EOF
    segment_servers 10.20.0.1 fd20::1
    configure rs4 <<EOF
link set lo up
$(address eth0 10.30.0.14/24 fd30::14/64)
route add default via 10.30.0.254
route add default via fd30::254
EOF
    # The way to rs4, now that the links are up.
    configure gw <<EOF
route add 10.30.0.0/24 via 10.20.0.254
route add fd30::/64 via fd20::254
EOF
}

# No address on gw, not even of the link: what speaks there is gatun, through a port of the bridge.
make_bridged() {
    configure gw <<EOF
link set lo up
$(bridge lan 02:00:0a:14:00:01 rs{1,2,3}:eth0 router:eth1)
$(for node in rs1 rs2 rs3 router; do printf 'link set lan-%s addrgenmode none\n' "$node"; done)
link set lan addrgenmode none
link set lan up
EOF
    configure router <<EOF
link set lo up
$(veth router eth0 client eth0)
$(address eth0 198.51.100.1/24 2001:db8:1::1/64)
$(address eth1 10.20.0.254/24 fd20::254/64)
route add 203.0.113.0/24 dev eth1
route add 2001:db8:f::/64 dev eth1
EOF
    configure client <<EOF
link set lo up
$(address eth0 198.51.100.2/24 2001:db8:1::2/64)
route add default via 198.51.100.1
route add default via 2001:db8:1::1
EOF
    segment_servers 10.20.0.2 fd20::2
}

# Two hosts inside that go out through gw, two outside with two addresses each. What is outside knows no way to
# the addresses inside, so that a packet that leaves untranslated has no answer.
make_masquerade() {
    local n
    configure gw <<EOF
link set lo up
$(bridge wan 02:00:c6:33:64:01 out{1,2}:eth0)
$(bridge lan 02:00:0a:28:00:01 in{1,2}:eth0)
$(address wan 198.51.100.1/24 2001:db8:1::1/64)
$(address lan 10.40.0.1/24 fd40::1/64)
EOF
    for n in 1 2; do
        configure "in$n" <<EOF
link set lo up
$(address eth0 "10.40.0.$((n + 1))/24" "fd40::$((n + 1))/64")
route add default via 10.40.0.1
route add default via fd40::1
EOF
        configure "out$n" <<EOF
link set lo up
$(address eth0 "198.51.100.$((2 * n))/24" "198.51.100.$((2 * n + 1))/24" "2001:db8:1::$((2 * n))/64" "2001:db8:1::$((2 * n + 1))/64")
route add 203.0.113.0/24 via 198.51.100.1
route add 2001:db8:f::/64 via 2001:db8:1::1
route add 2001:db8:40::/64 via 2001:db8:1::1
EOF
    done
}

make_bare() { :; }
