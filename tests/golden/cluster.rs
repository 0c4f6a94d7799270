//! Who serves a new flow besides what the scheduler says: persistence, thresholds, slow start, quorum, the sorry server.

use std::time::Duration;

use gatun::explain::{Explained, explain};
use gatun::service::{Persistence, PortRange, Protocols, Request, SchedulerKind, ServerSpec, Way};
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, Protocol, Tuple};

use crate::gateway::{Gateway, find};
use crate::support::packet::{ACK, RST, SYN, tcp};
use crate::support::world::{ServiceSpecExt, service};
use crate::{Net, Row};

const MINUTE: Duration = Duration::from_secs(60);

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let mut spec = net.spec();
    for server in &mut find(&mut spec, "web").servers {
        server.max_connections = Some(1);
    }
    let syn = |port| tcp(net.client(port), net.vip(80)).syn();
    let reset = crate::refusal::answer(tcp(net.vip(80), net.client(3))).flags(RST | ACK).seq(0, 1001);
    vec![
        Row::forward("a server with room", spec.clone(), syn(2), syn(2).with_dst(net.rs(2, 8080))).after([syn(1)]),
        Row::refuse(
            "all servers are full: a SYN gets a RST",
            spec,
            syn(3),
            DropReason::ServersFull,
            crate::refusal::without_window(reset),
        )
        .after([syn(1), syn(2)]),
    ]
}

fn persistent(net: Net, settings: Persistence) -> Gateway {
    Gateway::new(net, |spec| find(spec, "web").persistence = Some(settings))
}

fn why(gateway: &Gateway, n: u8, port: u16) -> Result<(Way, String), DropReason> {
    let (client, vip) = (gateway.net.other(n, port), gateway.net.vip(80));
    let tuple = Tuple {
        src: Addr::from(client.ip()),
        dst: Addr::from(vip.ip()),
        sport: client.port(),
        dport: vip.port(),
        protocol: Protocol::TCP,
    };
    match explain(&gateway.engine, gateway.now, &tuple, SYN).outcome {
        Explained::Admitted { choice, .. } => Ok((choice.way, choice.server)),
        Explained::Dropped { reason, .. } => Err(reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_comes_to_its_server_again_while_others_are_spread() {
    for net in Net::BOTH {
        let mut gateway = persistent(net, Persistence::DEFAULT);
        let (rs1, rs2) = (net.rs(1, 8080), net.rs(2, 8080));
        assert_eq!(why(&gateway, 1, 1), Ok((Way::Scheduled, "rs1".into())));
        for port in 1..4 {
            assert_eq!(gateway.connect(1, port), Ok(rs1));
            assert_eq!(why(&gateway, 1, port + 1), Ok((Way::Remembered, "rs1".into())));
        }
        assert_eq!((gateway.connect(2, 1), gateway.connect(2, 2)), (Ok(rs2), Ok(rs2)));
        assert_eq!((gateway.connect(3, 1), gateway.connect(3, 2)), (Ok(rs1), Ok(rs1)));
        let table = gateway.service("web").persisted.clone().expect("persistent");
        assert_eq!(table.occupancy().0, 3);
        // Past the timeout, with nothing left open.
        gateway.evacuate(&[gateway.server("web", 0).id, gateway.server("web", 1).id], None);
        gateway.wait(7 * MINUTE);
        assert_eq!(table.occupancy().0, 0);
        assert_eq!(gateway.connect(1, 9), Ok(rs2), "the scheduler's turn went on");
    }
}

#[test]
fn an_entry_lives_while_its_flows_do() {
    let mut gateway = persistent(Net::V4, Persistence { timeout: MINUTE, ..Persistence::DEFAULT });
    let rs1 = gateway.establish(1, 1);
    for _ in 0..30 {
        gateway.wait(MINUTE);
    }
    gateway.connect(2, 1).expect("served");
    assert_eq!(gateway.connect(1, 2), Ok(rs1));
    let table = gateway.service("web").persisted.clone().expect("persistent");
    assert_eq!(table.entries(gateway.now, 0, 9).0.iter().map(|entry| entry.flows).sum::<u32>(), 3);
}

#[test]
fn clients_of_one_network_come_to_one_server() {
    for net in Net::BOTH {
        let mut gateway = persistent(net, Persistence { prefix_v4: 24, prefix_v6: 48, ..Persistence::DEFAULT });
        let servers: Vec<_> = (0..4).map(|n| gateway.connect(n, 1)).collect();
        assert_eq!(servers, [Ok(net.rs(1, 8080)); 4]);
        assert_eq!(gateway.send(&tcp(net.client(1), net.vip(80)).syn()), Ok(net.rs(2, 8080)));
    }
}

#[test]
fn who_was_sent_away_from_a_server_that_takes_no_flow_stays_where_it_went() {
    type Change = fn(&mut Gateway, bool);
    let ways: [(&str, Change); 4] = [
        ("down", |gateway, on| assert!(gateway.server("web", 0).state.set_up(gateway.now, !on))),
        ("draining", |gateway, on| assert!(gateway.server("web", 0).state.set_draining(on))),
        ("weight 0", |gateway, on| gateway.reload(|spec| find(spec, "web").servers[0].weight = u32::from(!on))),
        ("full", |gateway, on| {
            gateway.reload(|spec| find(spec, "web").servers[0].max_connections = on.then_some(1));
        }),
    ];
    for (name, change) in ways {
        let mut gateway = persistent(Net::V4, Persistence::DEFAULT);
        let (rs1, rs2) = (gateway.net.rs(1, 8080), gateway.net.rs(2, 8080));
        assert_eq!(gateway.connect(1, 1), Ok(rs1));
        change(&mut gateway, true);
        assert_eq!(gateway.connect(1, 2), Ok(rs2), "{name}");
        change(&mut gateway, false);
        assert_eq!(gateway.connect(1, 3), Ok(rs2), "{name}: it is at home there now");
        let entries = gateway.service("web").persisted.as_ref().expect("persistent").entries(gateway.now, 0, 9).0;
        assert_eq!(entries[0].flows, 2, "{name}: the flow to the first server is not counted any more");
    }
}

#[test]
fn a_session_over_several_ports_ends_where_it_began_while_its_server_is_drained() {
    let ways: [fn(&mut Gateway); 2] = [
        |gateway| assert!(gateway.server("web", 0).state.set_draining(true)),
        |gateway| gateway.reload(|spec| find(spec, "web").servers[0].weight = 0),
    ];
    for drain in ways {
        let mut gateway = Gateway::new(Net::V4, |spec| {
            let web = find(spec, "web");
            web.persistence = Some(Persistence::DEFAULT);
            web.ports = PortRange { first: 80, last: 81 };
        });
        let (rs1, rs2) = (gateway.net.rs(1, 8080), gateway.net.rs(2, 8080));
        assert_eq!(gateway.connect(1, 1), Ok(rs1));
        drain(&mut gateway);
        assert_eq!(gateway.connect(1, 2), Ok(rs1), "a further flow of the session");
        assert_eq!(why(&gateway, 1, 3), Ok((Way::Bound, "rs1".into())));
        let entries = gateway.service("web").persisted.as_ref().expect("persistent").entries(gateway.now, 0, 9).0;
        assert_eq!(entries[0].flows, 1, "only the flow from before the drain makes the session last");
        assert_eq!((gateway.connect(2, 1), gateway.connect(3, 1)), (Ok(rs2), Ok(rs2)), "others do not come");
        gateway.server("web", 0).state.set_up(gateway.now, false);
        assert_eq!(gateway.connect(1, 4), Ok(rs2), "a server that is down serves nobody");
    }
}

#[test]
fn services_of_a_group_send_a_client_to_one_host() {
    for net in Net::BOTH {
        let ip = |number| net.rs(number, 0).ip().to_string();
        let mut gateway = Gateway::new(net, |spec| {
            let shop = |name: &str, port: u16, at: u16| {
                let mut service = service(name, &net.vip(0).ip().to_string(), PortRange::single(port), Protocols::Tcp)
                    .server(&ip(3), Some(at), 1)
                    .server(&ip(2), Some(at), 1)
                    .server(&ip(1), Some(at), 1);
                (service.group, service.persistence) = (Some("shop".into()), Some(Persistence::DEFAULT));
                service
            };
            spec.services = vec![shop("http", 80, 8080), shop("https", 443, 8443), shop("news", 119, 119)];
            // One that does not have all of the hosts.
            spec.services[2].servers.remove(2);
        });
        let mut open = |port: u16, n: u8, sport: u16| {
            let to = tcp(net.other(n, sport), net.vip(port)).syn();
            gateway.send(&to).expect("served")
        };
        assert_eq!(
            (open(80, 1, 1), open(443, 1, 2), open(119, 1, 3)),
            (net.rs(3, 8080), net.rs(3, 8443), net.rs(3, 119))
        );
        assert_eq!((open(443, 2, 1), open(80, 2, 2)), (net.rs(3, 8443), net.rs(3, 8080)));
        assert_eq!((open(443, 3, 1), open(80, 3, 2)), (net.rs(2, 8443), net.rs(2, 8080)));
        assert_eq!(
            (open(80, 4, 1), open(80, 5, 1), open(443, 5, 2)),
            (net.rs(2, 8080), net.rs(1, 8080), net.rs(1, 8443))
        );
        // This one knows no such host: the client has a new home.
        assert_eq!((open(119, 5, 3), open(80, 5, 4)), (net.rs(3, 119), net.rs(3, 8080)));
        let tables: Vec<_> = gateway.engine.snapshot().persisted().iter().map(|table| table.occupancy().0).collect();
        assert_eq!(tables, [5]);
    }
}

#[test]
fn a_reload_forgets_nobody_unless_clients_are_named_in_another_way() {
    let net = Net::V4;
    let mut gateway = persistent(net, Persistence::DEFAULT);
    assert_eq!((gateway.connect(1, 1), gateway.connect(2, 1)), (Ok(net.rs(1, 8080)), Ok(net.rs(2, 8080))));
    gateway.reload(|spec| {
        let web = find(spec, "web");
        web.persistence = Some(Persistence { timeout: MINUTE, ..Persistence::DEFAULT });
        web.servers.reverse();
        web.scheduler = SchedulerKind::Wlc;
    });
    assert_eq!((gateway.connect(1, 2), gateway.connect(2, 2)), (Ok(net.rs(1, 8080)), Ok(net.rs(2, 8080))));
    gateway.reload(|spec| find(spec, "web").persistence = Some(Persistence { prefix_v4: 24, ..Persistence::DEFAULT }));
    assert_eq!(gateway.service("web").persisted.as_ref().expect("persistent").occupancy().0, 0);
    gateway.reload(|spec| find(spec, "web").persistence = None);
    gateway.evacuate(&[gateway.server("web", 0).id, gateway.server("web", 1).id], None);
    assert!(gateway.flows().is_empty());
}

#[test]
fn strangers_do_not_push_out_who_is_connected() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net, |spec| {
        find(spec, "web").persistence = Some(Persistence::DEFAULT);
        spec.limits.persistent_clients = 16;
    });
    let home = gateway.establish(1, 1);
    gateway.connect(2, 1).expect("served");
    for n in 10..110 {
        let client = net.other(n, 1);
        let server = gateway.connect(n, 1).expect("served");
        // Refused: the flow is over, and deleted.
        gateway.send(&tcp(server, client).flags(RST | ACK).seq(0, 1001)).expect("its flow");
        gateway.wait(Duration::from_secs(240));
        gateway.send(&tcp(client, net.vip(80)).flags(ACK)).expect_err("no flow");
        gateway.send(&tcp(net.other(1, 1), net.vip(80)).flags(ACK).seq(1001, 5001)).expect("it lives");
        assert_eq!(gateway.connect(1, 1000 + u16::from(n)), Ok(home));
    }
    assert_eq!(gateway.service("web").persisted.as_ref().expect("persistent").occupancy().1, 16);
}

#[test]
fn a_full_server_takes_flows_again_below_its_lower_threshold() {
    // Upper and lower threshold, and with how many flows it takes new ones again.
    for (upper, lower, room) in [(4, None, 2), (4, Some(2), 1), (4, Some(0), 2), (4, Some(4), 3), (1, None, 0)] {
        let net = Net::V4;
        let mut gateway = Gateway::new(net, |spec| {
            let web = find(spec, "web");
            web.servers.truncate(1);
            (web.servers[0].max_connections, web.servers[0].min_connections) = (Some(upper), lower);
        });
        let name = format!("{upper}, {lower:?}");
        for port in 0..upper as u16 {
            assert_eq!(gateway.connect(1, 1 + port), Ok(net.rs(1, 8080)), "{name}");
        }
        let server = gateway.server("web", 0);
        for left in (0..upper).rev() {
            assert_eq!(gateway.connect(1, 99), Err(Verdict::Refuse(DropReason::ServersFull)), "{name}");
            assert_eq!(why(&gateway, 1, 99), Err(DropReason::ServersFull), "{name}");
            let flow = gateway.flows().remove(0);
            let filter = gatun::command::FlowFilter { sport: Some(flow.original.sport), ..Default::default() };
            gateway.engine.apply(gateway.now, gatun::command::Command::Delete { filter, cursor: 0 });
            assert_eq!(server.load.flows(), u64::from(left));
            if left <= room {
                assert_eq!(gateway.connect(1, 99), Ok(net.rs(1, 8080)), "{name}: {left} left");
                break;
            }
        }
    }
}

#[test]
fn thresholds_that_a_reload_changes_hold_at_once() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net, |spec| find(spec, "web").servers.truncate(1));
    for port in 1..=3 {
        gateway.connect(1, port).expect("served");
    }
    let limit =
        |gateway: &mut Gateway, upper| gateway.reload(|spec| find(spec, "web").servers[0].max_connections = upper);
    limit(&mut gateway, Some(3));
    assert_eq!(gateway.connect(1, 4), Err(Verdict::Refuse(DropReason::ServersFull)));
    limit(&mut gateway, Some(5));
    assert!(gateway.connect(1, 4).is_ok());
    limit(&mut gateway, Some(2));
    assert!(gateway.connect(1, 5).is_err());
    limit(&mut gateway, None);
    assert!(gateway.connect(1, 5).is_ok());
}

#[test]
fn a_server_that_comes_up_gets_a_growing_share() {
    use SchedulerKind::{Lc, Mh, Nq, Rr, Sed, Sh, Twos, Wlc, Wrr};
    // The others keep to one server for all of these clients.
    for scheduler in [Rr, Wrr, Lc, Wlc, Sed, Nq, Sh, Mh, Twos] {
        let net = Net::V4;
        let mut gateway = Gateway::new(net, |spec| {
            let web = find(spec, "web");
            web.scheduler = scheduler;
            // `wrr` has to pass over the heavy one again and again.
            (web.servers[0].weight, web.servers[0].slow_start) = (3, Some(100 * Duration::from_secs(1)));
            web.servers[1].weight = 3;
        });
        let state = gateway.server("web", 0).state.clone();
        state.set_up(gateway.now, false);
        gateway.connect(1, 1).expect("served");
        state.set_up(gateway.now, true);
        let mut shares = Vec::new();
        for _ in 0..5 {
            // Schedulers that go by load are not to see what went before.
            gateway.evacuate(&[gateway.server("web", 0).id, gateway.server("web", 1).id], None);
            let mut taken = 0;
            for n in 0..200_u16 {
                let server = gateway.connect(n as u8, 1000 + n).expect("served");
                taken += u32::from(server == net.rs(1, 8080));
            }
            shares.push(taken);
            gateway.wait(25 * Duration::from_secs(1));
        }
        let name = format!("{scheduler:?}: {shares:?}");
        assert_eq!(shares[0], 0, "{name}");
        assert!(shares.windows(2).all(|pair| pair[0] <= pair[1] + 20), "{name}");
        assert!(shares[1] > 5 && shares[1] < 80 && shares[4] > 50, "{name}");
    }
}

#[test]
fn a_server_that_comes_up_empty_gets_no_more_than_its_fair_share() {
    use SchedulerKind::{Lc, Nq, Rr, Sed, Wlc};
    for scheduler in [Rr, Lc, Wlc, Sed, Nq] {
        let gateway = Gateway::new(Net::V4, |spec| {
            let web = find(spec, "web");
            web.scheduler = scheduler;
            let servers = (1..=10).map(|n| ServerSpec {
                name: format!("rs{n}"),
                address: Addr::from_v4([10, 20, 0, n]),
                slow_start: Some(Duration::from_secs(60)),
                ..ServerSpec::default()
            });
            web.servers = servers.collect();
        });
        let service = gateway.service("web");
        service.servers[1..].iter().for_each(|server| (0..1000).for_each(|_| server.start(true)));
        let risen = &service.servers[0];
        risen.state.set_up(gateway.now, false);
        risen.state.set_up(gateway.now, true);
        let mut got = 0;
        for n in 0..500_u32 {
            let request = Request {
                now: gateway.now + Duration::from_secs(30),
                client: Addr::from_v4(n.to_be_bytes()),
                client_port: 5,
                vip: service.vip(),
                port: 80,
                is_urgent: false,
            };
            let picked = service.pick(&request, true).expect("ten servers are up");
            picked.server.start(true);
            got += u32::from(picked.server.id == risen.id);
        }
        assert!(
            (10..50).contains(&got),
            "{scheduler:?}: {got} of 500 in the middle of the time, where 25 are half a share"
        );
    }
}

#[test]
fn those_who_are_warming_up_serve_while_nobody_else_does() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net, |spec| {
        find(spec, "web").servers.truncate(1);
        find(spec, "web").servers[0].slow_start = Some(MINUTE);
    });
    let state = gateway.server("web", 0).state.clone();
    state.set_up(gateway.now, false);
    state.set_up(gateway.now, true);
    assert!((0..20).all(|n| gateway.connect(n, 1).is_ok()));
}

#[test]
fn the_sorry_server_serves_while_nobody_else_can_and_without_quorum() {
    for net in Net::BOTH {
        let sorry = net.rs(3, 99);
        let mut gateway = Gateway::new(net, |spec| {
            let web = find(spec, "web");
            web.persistence = Some(Persistence::DEFAULT);
            let address = Addr::from(sorry.ip());
            web.sorry = Some(ServerSpec { name: "sorry".into(), address, port: Some(99), ..ServerSpec::default() });
        });
        let home = gateway.connect(1, 1).expect("served");
        let servers = gateway.service("web").servers.clone();
        let up =
            |gateway: &Gateway, up| servers.iter().for_each(|server| assert!(server.state.set_up(gateway.now, up)));
        up(&gateway, false);
        assert_eq!(why(&gateway, 1, 2), Ok((Way::NobodyElse, "sorry".into())));
        assert_eq!(gateway.connect(1, 2), Ok(sorry));
        up(&gateway, true);
        assert_eq!(gateway.connect(1, 3), Ok(home), "nobody is at home with the sorry server");
        let state = &gateway.service("web").state;
        state.set_quorum(false);
        assert_eq!(why(&gateway, 1, 4), Ok((Way::NoQuorum, "sorry".into())));
        assert_eq!(gateway.connect(1, 4), Ok(sorry));
        // Better those that there are than nobody.
        gateway.service("web").sorry.as_ref().expect("it has one").state.set_up(gateway.now, false);
        assert_eq!(gateway.connect(1, 5), Ok(home));
        up(&gateway, false);
        assert_eq!(gateway.connect(1, 6), Err(Verdict::Refuse(DropReason::NoServer)));
    }
}
