//! Configurations that differ in everything a reload may change.

use std::time::Duration;

use gatun::service::{
    FlowPolicy, Limits, Method, Passive, Persistence, PoolSpec, PortRange, Protocols, SchedulerKind, ServerSpec,
    ServiceSpec, SnapshotSpec,
};
use gatun::wire::outer::GUE_PORT;
use gatun::wire::{Addr, Encapsulation};

/// All but `mh`, whose table takes longer to make than everything else here together.
const SCHEDULERS: [SchedulerKind; 13] = [
    SchedulerKind::Rr,
    SchedulerKind::Wrr,
    SchedulerKind::Lc,
    SchedulerKind::Wlc,
    SchedulerKind::Sh,
    SchedulerKind::Lblc,
    SchedulerKind::Lblcr,
    SchedulerKind::Dh,
    SchedulerKind::Sed,
    SchedulerKind::Nq,
    SchedulerKind::Fo,
    SchedulerKind::Ovf,
    SchedulerKind::Twos,
];

/// A configuration whose services are by fullnat, through a few ports.
pub const FULLNAT: u8 = 9;

/// A few configurations that differ in everything a reload may change.
pub fn spec(number: u8) -> SnapshotSpec {
    let v4 = |last: u8| Addr::from_v4([203, 0, 113, last]);
    let v6 = |last: u8| {
        let mut octets = [0; 16];
        octets[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        octets[5] = 0xf;
        octets[15] = last;
        Addr::from_v6(octets)
    };
    let service =
        |name: &str, vip: Addr, first: u16, last: u16, protocols: Protocols, servers: &[(u8, Option<u16>, u32)]| {
            let servers = servers.iter().map(|&(host, port, weight)| ServerSpec {
                name: format!("rs{host}"),
                address: server_addr(vip.is_v4(), host),
                port,
                weight,
                ..ServerSpec::default()
            });
            ServiceSpec {
                name: name.into(),
                vip,
                ports: PortRange { first, last },
                protocols,
                scheduler: SCHEDULERS[usize::from(number) % SCHEDULERS.len()],
                servers: servers.collect(),
                ..ServiceSpec::default()
            }
        };
    use Protocols::{Tcp, TcpAndUdp, Udp};
    let kept = |service: ServiceSpec| keep_clients(number, service);
    let by = |method: Method, tunnel: Encapsulation, service: ServiceSpec| ServiceSpec { method, tunnel, ..service };
    // One address is a VIP as well.
    let pool = PoolSpec { addresses: vec![v4(100), v4(10), v6(100)], ports: PortRange { first: 20_000, last: 20_001 } };
    let full = |service: ServiceSpec| ServiceSpec { method: Method::Fullnat, pool: pool.clone(), ..service };
    let services = match number % 6 {
        _ if number % 12 == FULLNAT => vec![
            full(service("web", v4(10), 80, 80, Tcp, &[(11, Some(8080), 1), (12, Some(8080), 2)])),
            full(service("dns", v4(10), 53, 53, TcpAndUdp, &[(11, Some(53), 1)])),
            service("range", v4(10), 8000, 8099, Udp, &[(12, Some(9000), 1)]),
            full(service("all", v4(11), 1, 65535, TcpAndUdp, &[(11, None, 1), (12, None, 1)])),
            full(service("web6", v6(10), 80, 80, Tcp, &[(11, Some(8080), 1), (12, None, 1)])),
        ],
        4 => vec![
            by(
                Method::Direct,
                Encapsulation::Ipip,
                service("all", v4(11), 1, 65535, TcpAndUdp, &[(11, None, 1), (12, None, 1)]),
            ),
            by(Method::Direct, Encapsulation::Ipip, service("web6", v6(10), 80, 80, Tcp, &[(11, None, 1)])),
            service("web", v4(10), 80, 80, Tcp, &[(11, Some(8080), 1), (12, Some(8080), 2)]),
        ],
        5 => vec![
            by(
                Method::Tunnel,
                Encapsulation::Ipip,
                service("all", v4(11), 1, 65535, TcpAndUdp, &[(11, None, 1), (12, None, 1)]),
            ),
            by(
                Method::Tunnel,
                Encapsulation::Gue { port: GUE_PORT },
                service("web6", v6(10), 80, 80, Tcp, &[(11, None, 1)]),
            ),
            by(Method::Tunnel, Encapsulation::Ipip, service("all6", v6(10), 1, 65535, Udp, &[(12, None, 1)])),
            service("web", v4(10), 80, 80, Tcp, &[(11, Some(8080), 1), (12, Some(8080), 2)]),
        ],
        0 | 3 => vec![
            service("web", v4(10), 80, 80, Tcp, &[(11, Some(8080), 1), (12, Some(8080), 2)]),
            service("dns", v4(10), 53, 53, TcpAndUdp, &[(11, Some(53), 1)]),
            service("range", v4(10), 8000, 8099, Udp, &[(12, Some(9000), 1)]),
            // Shares a server and, towards the client, the ports with others: tuples collide on the server's side.
            service("all", v4(11), 1, 65535, TcpAndUdp, &[(11, None, 1), (12, None, 1)]),
            service("web6", v6(10), 80, 80, Tcp, &[(11, Some(8080), 1), (12, None, 1)]),
            service("all6", v6(10), 1, 65535, Udp, &[(12, None, 1)]),
        ],
        1 => vec![
            service("web", v4(10), 80, 80, Tcp, &[(11, Some(8080), 0), (13, Some(8081), 1)]),
            service("all", v4(11), 1, 65535, TcpAndUdp, &[(11, Some(1), 1)]),
            service("web6", v6(10), 80, 80, Tcp, &[]),
        ],
        _ => vec![service("web", v4(10), 80, 80, Tcp, &[]), service("dns", v4(12), 53, 53, Udp, &[(11, None, 0)])],
    };
    SnapshotSpec {
        services: services.into_iter().map(kept).collect(),
        tunnel_sources: [(true, 11), (true, 12), (false, 11), (false, 12)]
            .map(|(v4, host)| (server_addr(v4, host), server_addr(v4, 1)))
            .to_vec(),
        local_vips: if number % 6 == 3 { vec![v4(11)] } else { Vec::new() },
        limits: Limits {
            replies_per_second: 100,
            fragmented_packets: 4,
            held_fragment_bytes: 1500,
            persistent_clients: 3,
            ..Limits::default()
        },
        mtu: if number % 6 == 1 { 1280 } else { 1500 },
        ..SnapshotSpec::default()
    }
}

/// What a service may have besides; the upper bits of `number` say what.
fn keep_clients(number: u8, mut service: ServiceSpec) -> ServiceSpec {
    if number & 0x10 != 0 {
        service.group = (number & 0x40 != 0).then(|| "group".into());
        service.persistence = Some(Persistence { timeout: Duration::from_secs(100), prefix_v4: 31, prefix_v6: 127 });
    }
    if number & 0x20 != 0 {
        service.passive = Some(Passive { fall: 1 + u32::from(number & 1), hold: Duration::from_secs(20) });
        service.on_server_down = (number & 0x40 != 0).then_some(FlowPolicy::Reschedule);
        for server in &mut service.servers {
            (server.max_connections, server.slow_start) = (Some(2), Some(Duration::from_secs(50)));
        }
        let address = server_addr(service.vip.is_v4(), 13);
        let port = (!service.method.is_one_way()).then_some(9);
        service.sorry = Some(ServerSpec { name: "sorry".into(), address, port, ..ServerSpec::default() });
        if service.ports.first != service.ports.last || service.method == Method::Tunnel {
            service.sorry = None;
        }
    }
    let is_full = service.method == Method::Fullnat;
    service.one_packet = number & 0x80 != 0 && service.protocols == Protocols::Udp && !is_full;
    service
}

pub fn server_addr(v4: bool, host: u8) -> Addr {
    if v4 { Addr::from_v4([10, 20, 0, host]) } else { server_like([0xfd, 0x20, 0, 0], host) }
}

pub fn server_like(prefix: [u8; 4], last: u8) -> Addr {
    let mut octets = [0; 16];
    octets[..4].copy_from_slice(&prefix);
    octets[15] = last;
    Addr::from_v6(octets)
}
