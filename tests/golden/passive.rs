//! What clients' own connections tell of a server.

use std::time::Duration;

use gatun::command::{Command, Extent, Only, Outcome};
use gatun::service::{Method, Passive, PortRange, ServerState};
use gatun::verdict::Verdict;
use gatun::wire::{Addr, Encapsulation, PacketBuf};

use crate::gateway::{Gateway, find};
use crate::support::oracle;
use crate::support::packet::{ACK, Build, IcmpError, RST, SYN, icmp_error, tcp, udp};
use crate::{Net, fullnat};

const SECOND: Duration = Duration::from_secs(1);
const HOST_UNREACHABLE: [IcmpError; 2] = [IcmpError::Raw(3, 1, [0; 4]), IcmpError::Raw(1, 3, [0; 4])];

fn gateway(net: Net, method: Method, fall: u32) -> Gateway {
    Gateway::new(net, |spec| {
        spec.tunnel_sources =
            (1..4).map(|number| (Addr::from(net.rs(number, 0).ip()), Addr::from(net.inner_router().ip()))).collect();
        let second = spec.services[0].servers[1].clone();
        find(spec, "dns").servers.push(second);
        for name in ["web", "dns"] {
            let service = find(spec, name);
            service.passive = Some(Passive { fall, hold: 10 * SECOND });
            (service.method, service.tunnel) = (method, Encapsulation::Ipip);
            service.pool = fullnat::pool_of(net);
            for server in &mut service.servers {
                server.port = (!method.is_one_way()).then_some(if name == "web" { 8080 } else { 53 });
            }
        }
    })
}

fn state(gateway: &Gateway, service: &str) -> std::sync::Arc<ServerState> {
    gateway.server(service, 0).state.clone()
}

/// The server refuses client `n`.
fn refuse(gateway: &mut Gateway, n: u8) {
    let server = gateway.connect(n, 1).expect("served");
    let client = gateway.net.other(n, 1);
    assert_eq!(gateway.send(&tcp(server, client).flags(RST | ACK).seq(0, 1001)), Ok(client));
}

#[test]
fn a_refused_connection_is_a_failure_and_an_answered_one_ends_the_row() {
    for net in Net::BOTH {
        let mut gateway = gateway(net, Method::Nat, 3);
        gateway.reload(|spec| find(spec, "web").servers[1].weight = 0);
        // Somebody else there is to be, for the last one never falls.
        gateway.reload(|spec| find(spec, "web").servers[1].weight = 1);
        let web = state(&gateway, "web");
        let other = gateway.server("web", 1).state.clone();
        other.set_draining(true);
        refuse(&mut gateway, 1);
        refuse(&mut gateway, 2);
        assert_eq!(web.failures(), (2, 2));
        gateway.establish(3, 1);
        assert_eq!(web.failures(), (0, 2));
        refuse(&mut gateway, 4);
        refuse(&mut gateway, 5);
        other.set_draining(false);
        // The scheduler's turn is the other's.
        gateway.connect(99, 1).expect("served");
        let rs1 = net.rs(1, 8080);
        while gateway.connect(6, 1) != Ok(rs1) {
            gateway.connect(98, 1).expect("served");
            gateway.evacuate(&[gateway.server("web", 1).id], None);
        }
        let client = net.other(6, 1);
        assert_eq!(gateway.send(&tcp(rs1, client).flags(RST | ACK).seq(0, 1001)), Ok(client));
        assert_eq!((web.is_up(), web.passive_down_since()), (false, Some(gateway.now)));
        assert!((10..20).all(|n| gateway.connect(n, 1) == Ok(net.rs(2, 8080))));
    }
}

#[test]
fn a_syn_that_comes_again_goes_to_another_server() {
    for (net, method) in
        Net::BOTH.into_iter().flat_map(|net| Method::OF_SERVICES.iter().map(move |method| (net, *method)))
    {
        let mut gateway = gateway(net, method, 1);
        let first = gateway.connect(1, 1).expect("served");
        let web = state(&gateway, "web");
        // The network sends it twice.
        assert_eq!(gateway.connect(1, 1), Ok(first));
        assert!(web.is_up());
        gateway.wait(SECOND);
        let second = gateway.connect(1, 1).expect("served");
        assert_ne!(second, first, "{net:?} {method:?}");
        assert_eq!((web.is_up(), gateway.flows().len()), (false, 1));
        assert_eq!(gateway.flows()[0].server, gateway.server("web", 1).id);
        // It is counted once a flow, and the last one never falls.
        for _ in 0..5 {
            gateway.wait(SECOND);
            assert_eq!(gateway.connect(1, 1), Ok(second));
        }
        assert!(gateway.server("web", 1).state.is_up());
        assert_eq!(gateway.server("web", 1).state.failures().1, 1);
    }
}

#[test]
fn below_the_limit_a_flow_stays_where_it_is() {
    let net = Net::V4;
    let mut gateway = gateway(net, Method::Nat, 2);
    let first = gateway.connect(1, 1).expect("served");
    for _ in 0..4 {
        gateway.wait(SECOND);
        assert_eq!(gateway.connect(1, 1), Ok(first));
    }
    assert_eq!(state(&gateway, "web").failures(), (1, 1));
}

#[test]
fn an_answered_syn_that_comes_again_says_nothing() {
    let net = Net::V4;
    let mut gateway = gateway(net, Method::Nat, 1);
    let (client, rs1) = (net.other(1, 1), gateway.connect(1, 1).expect("served"));
    assert_eq!(gateway.send(&tcp(rs1, client).flags(SYN | ACK).seq(5000, 1001)), Ok(client));
    gateway.wait(SECOND);
    assert_eq!(gateway.connect(1, 1), Ok(rs1));
    gateway.wait(300 * SECOND);
    assert!(gateway.flows().is_empty());
    assert_eq!(state(&gateway, "web").failures(), (0, 0), "that the client went is no fault of the server's");
}

#[test]
fn where_answers_are_not_seen_only_a_syn_that_comes_again_counts() {
    for (net, method) in Net::BOTH.into_iter().flat_map(|net| [(net, Method::Direct), (net, Method::Tunnel)]) {
        let mut gateway = gateway(net, method, 2);
        let web = state(&gateway, "web");
        let (client, vip) = (net.other(1, 1), net.vip(80));
        // Strangers with forged sources, who never come back.
        for n in 10..30 {
            gateway.connect(n, 1).expect("served");
        }
        gateway.wait(300 * SECOND);
        assert_eq!((gateway.flows().len(), web.failures()), (0, (0, 0)));
        let twice = |gateway: &mut Gateway, n: u8| {
            while gateway.connect(n, 1).is_ok()
                && gateway.flows().last().map(|flow| flow.server) != Some(gateway.server("web", 0).id)
            {
                gateway.evacuate(&[gateway.server("web", 1).id], None);
            }
            gateway.wait(SECOND);
            gateway.connect(n, 1).expect("served");
        };
        twice(&mut gateway, 1);
        assert_eq!(web.failures(), (1, 1), "{net:?} {method:?}");
        // The SYN-ACK was lost on the way to the client; all is well.
        assert!(gateway.send(&tcp(client, vip).flags(ACK).seq(1001, 5001)).is_ok());
        assert_eq!(web.failures(), (0, 1));
        gateway.wait(SECOND);
        gateway.connect(1, 1).expect("an established flow's");
        assert_eq!(web.failures(), (0, 1));
    }
}

#[test]
fn a_connection_that_expires_unanswered_is_a_failure() {
    let net = Net::V4;
    let mut gateway = gateway(net, Method::Nat, 1);
    gateway.connect(1, 1).expect("served");
    gateway.wait(241 * SECOND);
    assert_eq!((gateway.flows().len(), state(&gateway, "web").is_up()), (0, false));
}

/// An error about what was sent to the server of the last flow.
fn error(gateway: &mut Gateway, packet: &Build, kind: IcmpError) -> Result<std::net::SocketAddr, Verdict> {
    let (verdict, sent) = gateway.feed(packet.buf());
    assert_eq!(verdict, Verdict::Forward);
    let sent = oracle::complete(&sent);
    let quoted = oracle::decode(&sent).expect("a packet");
    gateway.send(&icmp_error((gateway.net.inner_router().ip(), 0), (quoted.src, 0), kind, &sent))
}

#[test]
fn an_error_about_the_server_is_a_failure_unless_it_answers() {
    for (net, method) in
        Net::BOTH.into_iter().flat_map(|net| Method::OF_SERVICES.iter().map(move |method| (net, *method)))
    {
        let name = format!("{net:?} {method:?}");
        let unreachable = HOST_UNREACHABLE[usize::from(!net.is_v4())];
        for (service, packet) in [
            ("web", tcp(net.other(1, 1), net.vip(80)).syn().seq(1000, 0)),
            ("dns", udp(net.other(1, 1), net.vip(53)).payload("q")),
        ] {
            let mut gateway = gateway(net, method, 1);
            let state = state(&gateway, service);
            // Of another kind.
            assert!(error(&mut gateway, &packet, IcmpError::TimeExceeded).is_ok());
            if method != Method::Tunnel {
                assert!(error(&mut gateway, &packet, IcmpError::TooBig(1400)).is_ok());
            }
            assert!(state.is_up(), "{name} {service}");
            error(&mut gateway, &packet, unreachable).expect("it is told");
            assert_eq!((state.is_up(), state.failures().1), (false, 1), "{name} {service}");
        }
    }
    // Its client was served before; the way may be gone for a moment.
    let net = Net::V4;
    let mut gateway = gateway(net, Method::Nat, 1);
    gateway.establish(1, 1);
    let data = tcp(net.other(1, 1), net.vip(80)).flags(ACK).seq(1001, 5001).payload("x");
    error(&mut gateway, &data, HOST_UNREACHABLE[0]).expect("it is told");
    let query = udp(net.other(1, 1), net.vip(53)).payload("q");
    let server = gateway.send(&query).expect("served");
    gateway.send(&udp(server, net.other(1, 1))).expect("an answer");
    error(&mut gateway, &query, IcmpError::PortUnreachable).expect("it is told");
    assert!(state(&gateway, "web").is_up() && state(&gateway, "dns").is_up());
}

#[test]
fn a_forged_error_about_a_connection_counts_for_nothing() {
    let net = Net::V4;
    let mut gateway = gateway(net, Method::Nat, 1);
    let client = net.other(1, 1);
    let server = gateway.connect(1, 1).expect("served");
    for seq in [1001_u32.wrapping_sub(1501), 1001, 77_000_000] {
        let guessed = tcp(client, server).syn().seq(seq, 0);
        gateway
            .send(&icmp_error(net.inner_router(), (client.ip(), 0), HOST_UNREACHABLE[0], &guessed.bytes()))
            .expect("for the client to judge");
    }
    assert!(state(&gateway, "web").is_up());
}

#[test]
fn a_server_comes_up_by_itself_when_its_time_is_over_unless_a_check_is_to_decide() {
    for checked in [false, true] {
        let net = Net::V4;
        let mut gateway = gateway(net, Method::Nat, 1);
        let web = state(&gateway, "web");
        web.set_checked(checked);
        refuse(&mut gateway, 1);
        let since = gateway.now;
        gateway.wait(10 * SECOND - Duration::from_micros(1));
        assert_eq!((web.is_up(), web.passive_down_since()), (false, Some(since)));
        gateway.wait(Duration::from_micros(1));
        assert_eq!((web.is_up(), web.passive_down_since()), (!checked, checked.then_some(since)));
        if checked {
            web.set_up(gateway.now, true);
            assert_eq!(web.passive_down_since(), None);
        }
        // It may fall again.
        while gateway.connect(2, 1) != Ok(net.rs(1, 8080)) {
            gateway.evacuate(&[gateway.server("web", 1).id], None);
        }
        gateway.send(&tcp(net.rs(1, 8080), net.other(2, 1)).flags(RST | ACK).seq(0, 1001)).expect("it is told");
        assert!(!web.is_up());
    }
}

#[test]
fn a_check_that_brought_it_up_and_took_it_down_again_is_not_overruled() {
    let mut gateway = gateway(Net::V4, Method::Nat, 1);
    let web = state(&gateway, "web");
    refuse(&mut gateway, 1);
    web.set_up(gateway.now, true);
    web.set_up(gateway.now, false);
    gateway.wait(60 * SECOND);
    assert!(!web.is_up());
}

#[test]
fn a_lone_server_never_falls() {
    let net = Net::V4;
    let mut gateway = gateway(net, Method::Nat, 1);
    gateway.reload(|spec| find(spec, "web").servers.truncate(1));
    for n in 0..20 {
        refuse(&mut gateway, n);
    }
    assert_eq!((state(&gateway, "web").is_up(), state(&gateway, "web").failures().0), (true, 20));
}

#[test]
fn a_syn_with_a_wrong_checksum_says_nothing() {
    for net in Net::BOTH {
        let mut gateway = gateway(net, Method::Nat, 1);
        for round in 0..2 {
            for n in 1..7 {
                let mut bytes = gateway.syn(n, 1).bytes();
                bytes[if net.is_v4() { 36 } else { 56 }] ^= 1;
                let (verdict, _) = gateway.feed(PacketBuf::from_packet(&bytes));
                assert_eq!(verdict, Verdict::Forward, "{round}");
            }
            gateway.wait(SECOND);
        }
        gateway.wait(300 * SECOND);
        for index in 0..2 {
            let state = gateway.server("web", index).state.clone();
            assert_eq!((state.is_up(), state.failures()), (true, (0, 0)), "{net:?}");
        }
    }
}

#[test]
fn a_port_scan_takes_no_server_down() {
    for net in Net::BOTH {
        let mut gateway = gateway(net, Method::Nat, 1);
        gateway.reload(|spec| find(spec, "web").ports = PortRange { first: 4000, last: 4018 });
        for port in 4000..=4018 {
            let client = net.other(1, port);
            let server = gateway.send(&tcp(client, net.vip(port)).syn().seq(1000, 0)).expect("served");
            assert_eq!(gateway.send(&tcp(server, client).flags(RST | ACK).seq(0, 1001)), Ok(client));
        }
        assert_eq!(state(&gateway, "web").failures(), (0, 0));
        assert!((0..2).all(|index| gateway.server("web", index).state.is_up()));
    }
}

#[test]
fn one_clients_failures_one_after_another_count_once() {
    for net in Net::BOTH {
        let mut gateway = gateway(net, Method::Nat, 3);
        gateway.server("web", 1).state.set_draining(true);
        let refuse = |gateway: &mut Gateway, n: u8, port: u16| {
            let (client, server) = (net.other(n, port), gateway.connect(n, port).expect("served"));
            assert_eq!(gateway.send(&tcp(server, client).flags(RST | ACK).seq(0, 1001)), Ok(client));
        };
        (1..20).for_each(|port| refuse(&mut gateway, 1, port));
        let web = state(&gateway, "web");
        assert_eq!(web.failures(), (1, 19));
        refuse(&mut gateway, 2, 1);
        assert_eq!(web.failures(), (2, 20));
        gateway.establish(3, 1);
        // After an answer it counts again.
        refuse(&mut gateway, 2, 2);
        refuse(&mut gateway, 4, 1);
        assert_eq!(web.failures(), (2, 22));
        let other = gateway.server("web", 1);
        other.state.set_draining(false);
        while gateway.connect(5, 1) != Ok(net.rs(1, 8080)) {
            gateway.evacuate(&[other.id], None);
        }
        gateway.send(&tcp(net.rs(1, 8080), net.other(5, 1)).flags(RST | ACK).seq(0, 1001)).expect("it is told");
        assert!(!web.is_up());
    }
}

#[test]
fn an_ipv6_host_is_one_client_whatever_its_address_within_its_network() {
    let net = Net::V6;
    let mut gateway = gateway(net, Method::Nat, 3);
    gateway.server("web", 1).state.set_draining(true);
    for n in 1..20 {
        let client = (format!("2001:db8:2::{n:x}").parse::<std::net::IpAddr>().expect("an address"), 1).into();
        let server = gateway.send(&tcp(client, net.vip(80)).syn().seq(1000, 0)).expect("served");
        assert_eq!(gateway.send(&tcp(server, client).flags(RST | ACK).seq(0, 1001)), Ok(client));
    }
    assert_eq!(state(&gateway, "web").failures(), (1, 19));
}

#[test]
fn at_most_half_of_a_services_servers_are_held_down() {
    for (count, half) in [(2, 1), (3, 1), (4, 2), (5, 2)] {
        let net = Net::V4;
        let mut gateway = gateway(net, Method::Nat, 1);
        gateway.reload(|spec| {
            let web = find(spec, "web");
            let first = web.servers[0].clone();
            web.servers = (1..=count)
                .map(|n| {
                    let address = Addr::from_v4([10, 20, 1, n]);
                    gatun::service::ServerSpec { name: n.to_string(), address, ..first.clone() }
                })
                .collect();
        });
        (0..20).for_each(|n| refuse(&mut gateway, n));
        let service = gateway.service("web");
        let down = || service.servers.iter().filter(|server| !server.state.is_up()).count();
        assert_eq!(down(), half, "of {count}");
        // What checks say does not count towards the half.
        service.servers.iter().filter(|server| !server.state.is_up()).for_each(|server| {
            server.state.set_up(gateway.now, false);
        });
        (20..40).for_each(|n| refuse(&mut gateway, n));
        let left = usize::from(count) - half;
        assert_eq!(down(), half + half.min(left - 1), "of {count}");
    }
}

/// Ends what a sweep for servers that are down ends.
fn sweep(gateway: &mut Gateway) -> u64 {
    let servers = [gateway.server("web", 0).id].as_slice().into();
    let extent = Extent { began: gateway.now, only: Only::Down };
    let command = Command::Evacuate { servers, policy: None, extent, cursor: 0 };
    match gateway.engine.apply(gateway.now, command) {
        Outcome::Deleted { count, next: None } => count,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_it_has_answered_goes_on_until_a_check_agrees() {
    for net in Net::BOTH {
        let mut gateway = gateway(net, Method::Nat, 1);
        gateway.server("web", 1).state.set_draining(true);
        let (client, vip, rs1) = (net.other(1, 1), net.vip(80), gateway.establish(1, 1));
        gateway.connect(2, 1).expect("served");
        gateway.connect(3, 1).expect("served");
        gateway.server("web", 1).state.set_draining(false);
        assert_eq!(gateway.send(&tcp(rs1, net.other(2, 1)).flags(RST | ACK).seq(0, 1001)), Ok(net.other(2, 1)));
        let web = state(&gateway, "web");
        assert!(!web.is_up() && web.is_doubted());
        let data = tcp(client, vip).flags(ACK).seq(1001, 5001).payload("x");
        assert_eq!(gateway.send(&data), Ok(rs1));
        // The refused one and the unanswered one.
        assert_eq!((sweep(&mut gateway), gateway.sent().len()), (1, 0), "{net:?}");
        assert_eq!(gateway.send(&data), Ok(rs1));
        assert_eq!(gateway.connect(3, 1), Ok(net.rs(2, 8080)), "the client's next SYN");
        assert!(!web.set_up(gateway.now, false) && !web.is_doubted());
        assert_eq!(gateway.send(&data), Err(Verdict::Drop(gatun::verdict::DropReason::ServerDown)));
        assert_eq!(gateway.sent().len(), 2);
        // It rises, and may be doubted again.
        web.set_up(gateway.now, true);
        while gateway.connect(4, 1) != Ok(rs1) {
            gateway.evacuate(&[gateway.server("web", 1).id], None);
        }
        gateway.send(&tcp(rs1, net.other(4, 1)).flags(RST | ACK).seq(0, 1001)).expect("it is told");
        assert!(web.is_doubted());
    }
}

#[test]
fn a_datagram_without_an_answer_says_nothing() {
    for net in Net::BOTH {
        let mut gateway = gateway(net, Method::Nat, 3);
        gateway.server("dns", 1).state.set_draining(true);
        let query = udp(net.other(1, 1), net.vip(53)).payload("q");
        error(&mut gateway, &query, HOST_UNREACHABLE[usize::from(!net.is_v4())]).expect("it is told");
        gateway.ask(2, 1).expect("served");
        gateway.wait(400 * SECOND);
        assert_eq!((gateway.flows().len(), state(&gateway, "dns").failures()), (0, (1, 1)));
    }
}
