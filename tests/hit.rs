//! What a packet of a known flow may cost: no allocation, and so many bytes a flow. What choosing a server may cost.

mod support;

use gatun::service::scheduler::Request;
use gatun::service::{PortRange, Protocols, SchedulerKind, ServerSpec, ServiceSpec, Snapshot, SnapshotSpec, SynProxy};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, PacketBuf};
use support::counting;
use support::packet::{ACK, PSH, tcp};
use support::traffic::{Client, Inside, PER_HOST, established, masquerade};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

#[test]
fn a_hit_allocates_nothing() {
    for v4 in [true, false] {
        let mut engine = established(v4, 50, 50);
        let client = Client::new(v4, ACK | PSH, 1001, 5001, 64);
        let mut buf = client.buf();
        let before = counting::allocations();
        for n in 0..1000 {
            client.write(&mut buf, n % 50);
            assert_eq!(engine.handle_packet(Instant::from_millis(n.into()), &mut buf), Verdict::Forward);
        }
        assert_eq!(counting::allocations() - before, 0);
    }
}

#[test]
fn a_syn_cookie_allocates_nothing_and_is_remembered_by_nothing() {
    for (src, dst) in [("198.51.100.2:1", "203.0.113.10:80"), ("[2001:db8:1::2]:1", "[2001:db8:f::10]:80")] {
        let mut spec = support::traffic::snapshot().spec.clone();
        spec.services.iter_mut().for_each(|service| service.syn_proxy = SynProxy::Always);
        let snapshot = Snapshot::build(spec, None).expect("it is sound");
        let mut engine = support::world::engine(snapshot.into(), 50);
        let linux = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
        let syn = tcp(src, dst).syn().tcp_options(&linux).bytes();
        // What an ACK without a cookie costs, which a flood may have as well.
        let ack = tcp(src, dst).flags(ACK).tcp_options(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]).bytes();
        let mut buf = PacketBuf::with_capacity(2000);
        let (before, bytes) = (counting::allocations(), counting::bytes());
        for n in 0..1000 {
            assert!(buf.replace(&syn));
            assert_eq!(engine.handle_packet(Instant::from_millis(n), &mut buf), Verdict::Reply);
            assert!(buf.replace(&ack));
            let verdict = engine.handle_packet(Instant::from_millis(n), &mut buf);
            assert_eq!(verdict, Verdict::Refuse(DropReason::NoFlow));
        }
        assert_eq!((counting::allocations() - before, counting::bytes() - bytes), (0, 0));
        assert_eq!(engine.occupancy().0, 0);
    }
}

#[test]
fn a_pick_allocates_nothing() {
    let server = |n: u8| ServerSpec {
        name: n.to_string(),
        address: Addr::from_v4([10, 20, 0, n]),
        port: None,
        // Some take no new flow.
        weight: u32::from(n % 3),
        ..ServerSpec::default()
    };
    let service = |(index, &scheduler): (usize, &SchedulerKind)| ServiceSpec {
        name: scheduler.word().to_owned(),
        vip: Addr::from_v4([203, 0, 113, index as u8]),
        ports: PortRange::single(80),
        protocols: Protocols::Tcp,
        scheduler,
        servers: (1..=9).map(server).collect(),
        ..ServiceSpec::default()
    };
    let services = SchedulerKind::ALL.iter().enumerate().map(service).collect();
    let snapshot = Snapshot::build(SnapshotSpec { services, ..SnapshotSpec::default() }, None).expect("it is sound");
    for service in &snapshot.live {
        let before = counting::allocations();
        for n in 0..1000_u16 {
            let [high, low] = n.to_be_bytes();
            let client = Addr::from_v4([198, 51, high, low]);
            let request = Request {
                now: Instant::ZERO,
                client,
                client_port: n,
                vip: service.spec.vip,
                port: 80,
                is_urgent: false,
            };
            assert!(service.scheduler.pick(&service.servers, &request).is_some());
        }
        assert_eq!(counting::allocations() - before, 0, "{}", service.spec.name);
    }
}

#[test]
fn a_flow_takes_at_most_256_bytes_all_in() {
    const FLOWS: usize = 1 << 16;
    let before = counting::bytes();
    let engine = gatun_engine(FLOWS);
    let bytes = usize::try_from(counting::bytes() - before).expect("an engine takes memory");
    assert!(bytes / FLOWS > 64, "nothing was counted: {bytes} bytes");
    assert!(bytes <= FLOWS * 256, "{} bytes a flow", bytes / FLOWS);
    // It was all set aside at the start: flows take no more.
    assert_eq!(engine.occupancy(), (0, FLOWS));
}

/// A million mappings of 20,000 inside hosts. What they take is set aside once, but for hosts: so one of each host's is enough to
/// see, and the bench `data_path` makes all of them.
#[test]
fn a_masqueraded_flow_takes_at_most_256_bytes_with_its_mapping() {
    const FLOWS: u32 = 1_000_000;
    for v4 in [true, false] {
        let snapshot = masquerade(FLOWS);
        let before = counting::bytes();
        let mut engine = support::world::engine(snapshot, FLOWS as usize);
        let inside = Inside::new(v4, 64);
        let mut buf = inside.buf();
        let mut send = |n: u32| {
            inside.write(&mut buf, n);
            assert_eq!(engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Forward);
        };
        (0..FLOWS / PER_HOST).for_each(|host| send(host * PER_HOST));
        let bytes = counting::bytes() - before;
        assert!(bytes > i64::from(FLOWS) * 224, "nothing was counted: {bytes} bytes");
        assert!(bytes <= i64::from(FLOWS) * 256, "{} bytes a flow", bytes as f64 / f64::from(FLOWS));
        // Another mapping of a host takes no more, and a packet of it allocates nothing.
        (0..1000).for_each(|host| send(host * PER_HOST + 1));
        assert_eq!(counting::bytes() - before, bytes);
        let allocations = counting::allocations();
        (0..1000).for_each(|host| send(host * PER_HOST + 1));
        assert_eq!(counting::allocations(), allocations);
    }
}

#[test]
fn a_full_table_has_taken_no_more_memory() {
    let mut engine = gatun_engine(2000);
    let syn = Client::new(true, support::packet::SYN, 1, 0, 0);
    let mut buf = syn.buf();
    let before = counting::bytes();
    for n in 0..2000 {
        syn.write(&mut buf, n);
        assert_eq!(engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Forward);
    }
    assert_eq!(engine.occupancy(), (2000, 2000));
    // The list of free numbers and the like may grow a little.
    assert!(counting::bytes() - before < 4096, "{} bytes", counting::bytes() - before);
}

fn gatun_engine(max_flows: usize) -> gatun::engine::Engine {
    support::world::engine(support::traffic::snapshot(), max_flows)
}
