//! What the kernel does with packets once the host is set up: client and server are namespaces of their own, and the
//! test itself sits where the gateway's engine would, at the device.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etherparse::{IpNumber, PacketBuilder, SlicedPacket, TransportSlice};
use ipnet::IpNet;

use super::support::{LOCAL, ROUTED, in_namespace, ip, patiently, plan, sh, sysctl, tun};
use crate::io::host::{Host, HostPlan, Listener, Ports, ReturnPath, VipPlan};

const UDP: u8 = 17;

/// A namespace that lasts as long as its process.
struct Peer(Child);

impl Peer {
    fn new() -> Peer {
        let mut child = Command::new("unshare").args(["--net", "sleep", "120"]).stdin(Stdio::null()).spawn().unwrap();
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        for _ in 0..200 {
            std::thread::sleep(Duration::from_millis(10));
            assert!(child.try_wait().unwrap().is_none(), "unshare failed");
            if std::fs::read_link(format!("/proc/{}/ns/net", child.id())).is_ok_and(|link| link != own) {
                return Peer(child);
            }
        }
        panic!("no namespace");
    }

    fn sh(&self, command: &str) -> String {
        let output = Command::new("nsenter")
            .args(["-n", "-t", &self.0.id().to_string(), "sh", "-ec", command])
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Run something in the namespace.
    fn inside<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        std::thread::spawn(move || {
            // SAFETY: setns(2) takes no pointers; it changes this thread only.
            assert_eq!(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            run()
        })
        .join()
        .unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Net {
    client: Peer,
    server: Peer,
    device: File,
}

/// client — up0, lan — server, and a device without a gateway behind it.
fn network() -> Net {
    let (client, server) = (Peer::new(), Peer::new());
    let no_dad = "for c in /proc/sys/net/ipv6/conf/*; do echo 0 > $c/accept_dad; done; ip link set lo up";
    sh(no_dad);
    sh(&format!(
        "ip link add up0 type veth peer name far0
         ip link add lan type veth peer name rs
         ip link set far0 netns {}
         ip link set rs netns {}",
        client.0.id(),
        server.0.id()
    ));
    client.sh(&format!(
        "{no_dad}; ip link set far0 up
         ip addr add 198.51.100.2/24 dev far0; ip addr add 2001:db8:1::2/64 dev far0
         ip route add 203.0.113.0/24 dev far0; ip route add 2001:db8:f::/64 dev far0"
    ));
    server.sh(&format!(
        "{no_dad}; ip link set rs up
         ip addr add 10.20.0.11/24 dev rs; ip addr add fd20::11/64 dev rs
         ip route add default via 10.20.0.1; ip route add default via fd20::1"
    ));
    sh("ip link set up0 up; ip link set lan up
        ip addr add 198.51.100.1/24 dev up0; ip addr add 2001:db8:1::1/64 dev up0
        ip addr add 10.20.0.1/24 dev lan; ip addr add fd20::1/64 dev lan");
    let ready = || sh("ip -6 addr show tentative").is_empty().then_some(());
    patiently(ready).expect("addresses that can be used");
    let device = tun("gatun0");
    // SAFETY: fcntl(2) with F_SETFL takes no pointers.
    assert_eq!(unsafe { libc::fcntl(device.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }, 0);
    Net { client, server, device }
}

/// The plan with a UDP service.
fn udp_plan(vips: &[&str]) -> HostPlan {
    let mut plan = plan("gatun0", vips);
    plan.mtu = Some(1500);
    plan.vips = vips
        .iter()
        .map(|vip| VipPlan {
            address: ip(vip),
            listeners: vec![Listener { protocol: UDP, ports: Some(Ports::one(53)) }],
            peers: Vec::new(),
        })
        .collect();
    plan.returns = ["10.20.0.11", "fd20::11"]
        .map(|server| ReturnPath { from: IpNet::from(ip(server)), protocol: Some(UDP), ports: Some(Ports::one(5353)) })
        .into();
    plan
}

/// What a packet from the device is.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    /// Ports, or type and code of ICMP; none in fragments.
    detail: Option<(u16, u16)>,
    fragment: bool,
}

fn dissect(packet: &[u8]) -> Option<Seen> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let net = sliced.net?;
    let payload = net.ip_payload_ref()?;
    let (from, to) = match &net {
        etherparse::NetSlice::Ipv4(ip) => {
            (IpAddr::V4(ip.header().source_addr()), IpAddr::V4(ip.header().destination_addr()))
        }
        etherparse::NetSlice::Ipv6(ip) => {
            (IpAddr::V6(ip.header().source_addr()), IpAddr::V6(ip.header().destination_addr()))
        }
        _ => return None,
    };
    let detail = match sliced.transport {
        Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
        Some(TransportSlice::Icmpv4(icmp)) => Some((icmp.type_u8().into(), icmp.code_u8().into())),
        Some(TransportSlice::Icmpv6(icmp)) => Some((icmp.type_u8().into(), icmp.code_u8().into())),
        _ => None,
    };
    Some(Seen { from, to, protocol: payload.ip_number.0, detail, fragment: payload.fragmented })
}

impl Net {
    /// Everything that comes to the device within a time, until one fits.
    async fn expect(&mut self, what: &str, fits: impl Fn(&Seen) -> bool) -> Seen {
        let mut others = Vec::new();
        let mut buffer = vec![0; 65536];
        for _ in 0..300 {
            while let Ok(len) = self.device.read(&mut buffer) {
                match dissect(&buffer[..len]) {
                    Some(seen) if fits(&seen) => return seen,
                    other => others.push(other),
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let state = sh("ip -s link show gatun0; ip rule; ip -6 rule; ip -6 addr; ss -uanp");
        panic!("{what} did not come to the device, but {others:?}\n{state}");
    }

    async fn expect_none(&mut self, what: &str, fits: impl Fn(&Seen) -> bool) {
        let mut buffer = vec![0; 65536];
        for _ in 0..30 {
            while let Ok(len) = self.device.read(&mut buffer) {
                let seen = dissect(&buffer[..len]);
                assert!(!seen.as_ref().is_some_and(&fits), "{what} came to the device: {seen:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// As the engine would send it.
    fn send(&mut self, from: &str, to: &str, hops: u8, len: usize) {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let builder = match (from.ip(), to.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), hops),
            (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), hops),
            _ => panic!("two families"),
        };
        let mut packet = Vec::new();
        builder.udp(from.port(), to.port()).write(&mut packet, &vec![0; len]).unwrap();
        self.device.write_all(&packet).unwrap();
    }
}

fn send_udp(from: &str, to: &str, len: usize) -> impl FnOnce() + Send + 'static {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    move || {
        let socket = bind(from);
        socket.send_to(&vec![0; len], to).unwrap();
        // The neighbour has to be found before the namespace loses interest in the packet.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A former socket lives on for a moment where another test starts a process just then, which has it until it execs.
fn bind(address: SocketAddr) -> UdpSocket {
    patiently(|| UdpSocket::bind(address).ok()).unwrap_or_else(|| panic!("{address} stays in use"))
}

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

#[test]
fn client_finds_the_vip_and_the_server_answers_through_the_device() {
    in_namespace("client_finds_the_vip_and_the_server_answers_through_the_device", async |directory| {
        let mut net = network();
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&udp_plan(&ROUTED)).await.unwrap();
        assert_eq!(sysctl("net/ipv6/conf/all/forwarding"), "0", "forwarding is on by interface only");

        for (client, vip, server) in [
            ("198.51.100.2:4000", "203.0.113.10:53", "10.20.0.11"),
            ("[2001:db8:1::2]:4000", "[2001:db8:f::10]:53", "[fd20::11]"),
        ] {
            // The client's neighbour table is empty: the kernel has to answer ARP and NDP for the VIP.
            net.client.inside(send_udp(client, vip, 100));
            let vip: SocketAddr = vip.parse().unwrap();
            let client_address = client.parse::<SocketAddr>().unwrap().ip();
            net.expect("the request", |seen| seen.to == vip.ip() && seen.detail == Some((4000, 53))).await;

            // What the engine sends on arrives; what the server says comes back, whole and in fragments.
            net.send(client, &format!("{server}:5353"), 64, 100);
            let icmp = if vip.is_ipv4() { (ICMP, (3, 3)) } else { (ICMPV6, (1, 4)) };
            net.expect("the server's port unreachable", |seen| {
                seen.to == client_address && seen.protocol == icmp.0 && seen.detail == Some(icmp.1)
            })
            .await;
            net.server.inside(send_udp(&format!("{server}:5353"), client, 100));
            net.expect("the reply", |seen| seen.to == client_address && seen.detail == Some((5353, 4000))).await;
            net.server.inside(send_udp(&format!("{server}:5353"), client, 4000));
            for part in ["one", "two", "three"] {
                net.expect(&format!("fragment {part} of the reply"), |seen| {
                    seen.to == client_address && seen.fragment && seen.protocol == UDP
                })
                .await;
            }
            net.server.inside(send_udp(&format!("{server}:9"), client, 100));
            net.expect_none("another program of the server", |seen| seen.detail == Some((9, 4000))).await;
        }
        host.undo().await;
    });
}

/// A pool of the servers' own segment, and one beyond it: without a rule, and without the server's default route for the first.
#[test]
fn servers_find_the_pool_that_they_answer_to() {
    in_namespace("servers_find_the_pool_that_they_answer_to", async |directory| {
        let mut net = network();
        let mut plan = udp_plan(&ROUTED);
        plan.returns.clear();
        for (pool, server) in [("10.20.0.200", "10.20.0.11"), ("fd20::200", "fd20::11"), ("192.0.2.9", "10.20.0.11")] {
            let peers = vec![IpNet::from(ip(server))];
            plan.vips.push(VipPlan { address: ip(pool), listeners: Vec::new(), peers });
        }
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&plan).await.unwrap();
        for (pool, server) in
            [("192.0.2.9", "10.20.0.11"), ("10.20.0.200", "10.20.0.11"), ("[fd20::200]", "[fd20::11]")]
        {
            if pool == "10.20.0.200" {
                net.server.sh("ip route del default; ip -6 route del default");
            }
            let to: SocketAddr = format!("{pool}:2000").parse().unwrap();
            // The engine's packet has the pool's address as its source.
            net.send(&format!("{pool}:2000"), &format!("{server}:5353"), 64, 100);
            net.expect("the server's port unreachable", |seen| {
                seen.to == to.ip() && [ICMP, ICMPV6].contains(&seen.protocol)
            })
            .await;
            net.server.inside(send_udp(&format!("{server}:5353"), &to.to_string(), 100));
            net.expect("the answer", |seen| seen.to == to.ip() && seen.detail == Some((5353, 2000))).await;
        }
        host.undo().await;
    });
}

/// The server stands for a host inside.
#[test]
fn what_an_inside_host_sends_elsewhere_comes_to_the_device() {
    in_namespace("what_an_inside_host_sends_elsewhere_comes_to_the_device", async |directory| {
        let mut net = network();
        // The strict filter, which looks for the way back of what comes in.
        sh("for i in all lan up0; do echo 1 > /proc/sys/net/ipv4/conf/$i/rp_filter; done");
        let mut plan = udp_plan(&LOCAL);
        let pool = Listener { protocol: UDP, ports: Some(Ports { first: 1024, last: 32767 }) };
        plan.vips.iter_mut().for_each(|vip| vip.listeners = vec![pool]);
        plan.returns = ["10.20.0.0/24", "fd20::/64"]
            .map(|net| ReturnPath { from: net.parse().unwrap(), protocol: None, ports: None })
            .into();
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&plan).await.unwrap();
        for (inside, outside, pool) in
            [("10.20.0.11", "198.51.100.2", "198.51.100.1"), ("[fd20::11]", "[2001:db8:1::2]", "[2001:db8:1::1]")]
        {
            net.server.inside(send_udp(&format!("{inside}:5000"), &format!("{outside}:53"), 100));
            net.expect("what goes out", |seen| seen.detail == Some((5000, 53))).await;
            net.server.inside(send_udp(&format!("{inside}:5000"), &format!("{outside}:53"), 3000));
            net.expect("a fragment", |seen| seen.fragment).await;
            // Out by the pool, and back: the outside host has nothing at that port.
            net.send(&format!("{pool}:2000"), &format!("{outside}:9"), 64, 100);
            let to = pool.trim_matches(['[', ']']);
            net.expect("the error from outside", |seen| {
                seen.to == ip(to)
                    && [(ICMP, Some((3, 3))), (ICMPV6, Some((1, 4)))].contains(&(seen.protocol, seen.detail))
            })
            .await;
            net.client.inside(send_udp(&format!("{outside}:9"), &format!("{pool}:2000"), 100));
            net.expect("the answer", |seen| seen.to == ip(to) && seen.detail == Some((9, 2000))).await;
            // What the host itself has at that address stays its own.
            net.client.inside(send_udp(&format!("{outside}:9"), &format!("{pool}:40000"), 100));
            net.server.inside(send_udp(&format!("{inside}:5000"), &format!("{pool}:40000"), 100));
            net.expect_none("what is the host's", |seen| seen.detail.is_some_and(|(_, to)| to == 40000)).await;
        }
        host.undo().await;
    });
}

#[test]
fn errors_of_the_kernel_itself_about_the_gateways_packets_come_to_the_device() {
    in_namespace("errors_of_the_kernel_itself_about_the_gateways_packets_come_to_the_device", async |directory| {
        let mut net = network();
        sh("ip link set lan mtu 1300");
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        let mut plan = udp_plan(&ROUTED);
        plan.mtu = Some(1500);
        host.apply(&plan).await.unwrap();

        for (client, server, protocol, too_big, exceeded) in [
            ("198.51.100.2:4000", "10.20.0.11:5353", ICMP, (3, 4), (11, 0)),
            ("[2001:db8:1::2]:4000", "[fd20::11]:5353", ICMPV6, (2, 0), (3, 0)),
        ] {
            let to = client.parse::<SocketAddr>().unwrap().ip();
            net.send(client, server, 64, 1400);
            net.expect("packet too big", |seen| {
                seen.to == to && seen.protocol == protocol && seen.detail == Some(too_big)
            })
            .await;
            net.send(client, server, 1, 100);
            net.expect("time exceeded", |seen| {
                seen.to == to && seen.protocol == protocol && seen.detail == Some(exceeded)
            })
            .await;
        }

        // An echo request of the host itself takes no detour.
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::ICMPV4)).unwrap();
        let client = SocketAddr::from(([198, 51, 100, 2], 0));
        let mut echo = [8, 0, 0, 0, 0, 1, 0, 1];
        echo[2..4].copy_from_slice(&(!0x0802u16).to_be_bytes());
        socket.send_to(&echo, &client.into()).unwrap();
        net.expect_none("an echo request", |seen| seen.protocol == ICMP && seen.detail == Some((8, 0))).await;
        host.undo().await;
    });
}

#[test]
fn local_ipv6_vip_keeps_neighbour_discovery_and_gives_up_errors() {
    in_namespace("local_ipv6_vip_keeps_neighbour_discovery_and_gives_up_errors", async |directory| {
        let mut net = network();
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&udp_plan(&LOCAL)).await.unwrap();

        for (client, vip) in [("198.51.100.2", "198.51.100.1"), ("[2001:db8:1::2]", "[2001:db8:1::1]")] {
            net.client.inside(send_udp(&format!("{client}:4000"), &format!("{vip}:53"), 100));
            net.expect("the request", |seen| seen.detail == Some((4000, 53))).await;
            net.client.inside(send_udp(&format!("{client}:4000"), &format!("{vip}:53"), 3000));
            net.expect("a fragment of a request", |seen| seen.fragment).await;
            net.client.inside(send_udp(&format!("{client}:4000"), &format!("{vip}:54"), 100));
            net.expect_none("what is the host's", |seen| seen.detail == Some((4000, 54))).await;
        }

        // A unicast solicitation for the VIP, as neighbours send it every half a minute.
        net.client.sh("ip neigh change 2001:db8:1::1 dev far0 nud probe || ip neigh replace 2001:db8:1::1 dev far0 \
            lladdr $(ip neigh show 2001:db8:1::1 dev far0 | sed 's/.*lladdr \\([^ ]*\\).*/\\1/') nud probe");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let state = net.client.sh("ip neigh show 2001:db8:1::1 dev far0");
        assert!(state.contains("REACHABLE"), "{state}");

        // The kernel looks for the client with the VIP as its source, and the answer comes to the VIP.
        sh("ip neigh flush dev up0");
        net.send("[2001:db8:1::1]:53", "[2001:db8:1::2]:4000", 64, 100);
        net.expect("the client's port unreachable", |seen| {
            seen.to == ip("2001:db8:1::1") && seen.protocol == ICMPV6 && seen.detail == Some((1, 4))
        })
        .await;
        host.undo().await;
    });
}

#[test]
fn program_on_the_host_uses_a_local_vip() {
    in_namespace("program_on_the_host_uses_a_local_vip", async |directory| {
        let mut net = network();
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&udp_plan(&LOCAL)).await.unwrap();
        for (vip, server) in [("198.51.100.1", "10.20.0.11"), ("2001:db8:1::1", "fd20::11")] {
            let (vip, server): (IpAddr, IpAddr) = (ip(vip), ip(server));
            let socket = UdpSocket::bind(SocketAddr::new(IpNet::from(vip).network(), 4001)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(SocketAddr::new(vip, 53)).unwrap();
            socket.send(b"question").unwrap();
            net.expect(&format!("the question to {vip}"), |seen| seen.from == vip && seen.detail == Some((4001, 53)))
                .await;
            // The server's answer comes to an address of the host, and yet to the device.
            let (from, to) = (SocketAddr::new(server, 5353), SocketAddr::new(vip, 4001));
            net.server.inside(send_udp(&from.to_string(), &to.to_string(), 100));
            net.expect("the answer", |seen| seen.from == server && seen.detail == Some((5353, 4001))).await;
            // And what the engine makes of it reaches the program.
            net.send(&SocketAddr::new(vip, 53).to_string(), &to.to_string(), 64, 100);
            let mut buffer = [0; 200];
            let mut received = None;
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                if let Ok(len) = socket.recv(&mut buffer) {
                    received = Some(len);
                    break;
                }
            }
            assert_eq!(received, Some(100), "{vip}");
        }
        host.undo().await;
    });
}

#[test]
fn neighbours_learn_of_the_vip_unasked() {
    in_namespace("neighbours_learn_of_the_vip_unasked", async |directory| {
        let net = network();
        // Entries that lead to a gateway that was there before.
        let old = "02:00:00:00:00:99";
        net.client.sh(&format!(
            "ip neigh add 203.0.113.10 dev far0 lladdr {old} nud stale
             ip neigh add 2001:db8:f::10 dev far0 lladdr {old} nud stale"
        ));
        // Some time for the kernel to take the link as running, and ARP's second in which it believes nobody else.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&udp_plan(&ROUTED)).await.unwrap();
        let own = sh("ip -o link show up0");
        let own = own.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
        let mut table = String::new();
        for _ in 0..40 {
            table = net.client.sh("ip neigh show dev far0");
            if !table.contains(old) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for vip in ROUTED {
            assert!(table.contains(&format!("{vip} lladdr {own}")), "{table}");
        }
        host.undo().await;
    });
}

/// The client is a router and says so; wait until the host has it for its default route.
async fn advertise(net: &Net) {
    net.client.inside(|| {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::RAW, Some(socket2::Protocol::ICMPV6)).unwrap();
        socket.set_multicast_hops_v6(255).unwrap();
        let links = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        let link = links.lines().find(|line| line.ends_with("far0")).unwrap();
        let index = u32::from_str_radix(link.split(' ').nth(1).unwrap(), 16).unwrap();
        // RFC 4861 section 4.2: a router for 1800 s.
        let advertisement = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
        let all_nodes = std::net::SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
        socket.send_to(&advertisement, &SocketAddr::V6(all_nodes).into()).unwrap();
    });
    for _ in 0..100 {
        if advertised().contains("dev up0") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the advertisement was not heeded");
}

fn advertised() -> String {
    sh("ip -6 route show default proto ra")
}

#[test]
fn advertised_default_route_survives_the_gateway() {
    in_namespace("advertised_default_route_survives_the_gateway", async |directory| {
        let net = network();
        advertise(&net).await;
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&udp_plan(&ROUTED)).await.unwrap();
        assert_eq!(sysctl("net/ipv6/conf/up0/forwarding"), "1");
        assert!(advertised().contains("dev up0"), "the host lost its way out");
        // A reload does not take its own traces for those of somebody else.
        host.apply(&udp_plan(&ROUTED)).await.unwrap();
        assert_eq!(sysctl("net/ipv6/conf/up0/accept_ra"), "2");
        host.undo().await;
        assert!(advertised().contains("dev up0"));
        assert_eq!(sysctl("net/ipv6/conf/up0/accept_ra"), "1");
    });
}

#[test]
fn kernel_forgets_advertised_routes_when_an_interface_becomes_a_routers() {
    // Why accept_ra has to be 2 before: should a kernel stop doing this, the care can go.
    in_namespace("kernel_forgets_advertised_routes_when_an_interface_becomes_a_routers", async |_| {
        let net = network();
        advertise(&net).await;
        sh("echo 1 > /proc/sys/net/ipv6/conf/lan/forwarding");
        assert!(advertised().is_empty());
    });
}

#[test]
fn unused_ip_number_is_not_taken_for_udp() {
    // A guard for this file's own dissection.
    let mut packet = Vec::new();
    PacketBuilder::ipv4([1, 2, 3, 4], [5, 6, 7, 8], 9).write(&mut packet, IpNumber(99), &[0; 8]).unwrap();
    let seen = dissect(&packet).unwrap();
    assert_eq!((seen.protocol, seen.detail), (99, None));
}
