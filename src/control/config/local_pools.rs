//! Pools at addresses of the gateway's own host, which has connections from there itself.
//!
//! What comes to a port of such a pool is looked at by the gateway first. What belongs to a connection of the host's own does
//! not survive that: the kernel has found its socket by then, and forwards nothing that has one (`ip_forward`,
//! net/ipv4/ip_forward.c). So the two must not use the same ports, neither those that the kernel gives to the host's
//! connections nor those that its programs listen at.

use std::path::Path;

use crate::service::{Method, PoolSpec, PortRange, Protocols, SnapshotSpec};
use crate::wire::{Addr, Protocol};

/// Outside addresses, and what is done with their ports.
struct Ports<'a> {
    subject: String,
    addresses: &'a [Addr],
    ports: PortRange,
    protocols: Protocols,
    /// Not a pool's, which could have others.
    is_forward: bool,
}

/// One sentence for each pool at an address that `is_local` and whose ports the host gives to its own connections. `proc`: where
/// the kernel tells which these are.
pub(in crate::control) fn warnings(spec: &SnapshotSpec, is_local: impl Fn(Addr) -> bool, proc: &Path) -> Vec<String> {
    let read = |name: &str| std::fs::read_to_string(proc.join(name)).unwrap_or_default();
    let local = |of: &Ports<'_>| of.addresses.iter().copied().filter(|address| is_local(*address)).collect::<Vec<_>>();
    let local: Vec<(Ports<'_>, Vec<Addr>)> =
        all(spec).map(|of| (local(&of), of)).filter(|(at, _)| !at.is_empty()).map(|(at, of)| (of, at)).collect();
    if local.is_empty() {
        return Vec::new();
    }
    let own = range(&read("sys/net/ipv4/ip_local_port_range"));
    let reserved: Vec<PortRange> = read("sys/net/ipv4/ip_local_reserved_ports").split(',').filter_map(range).collect();
    let is_reserved = |port: u16| reserved.iter().any(|range| range.contains(port));
    let [tcp, udp] = ["tcp", "udp"].map(|protocol| sockets(protocol, read));
    let mut warnings = Vec::new();
    for (of, address) in local.iter().flat_map(|(of, addresses)| addresses.iter().map(move |address| (of, *address))) {
        let Ports { subject, ports, is_forward, .. } = of;
        let (what, whose) = if *is_forward { ("forward", "its") } else { ("pool", "the pool's") };
        if let Some(own) = own.filter(|own| shares(*ports, *own, is_reserved)) {
            let mend = match apart(*ports, own).filter(|_| !is_forward) {
                Some(rest) => format!("give the pool the ports \"{rest}\", or name its ports in"),
                None => format!("name {whose} ports in"),
            };
            warnings.push(format!(
                "{subject}: {address} is an address of this host, whose own connections use the ports {own} \
                 (net.ipv4.ip_local_port_range) that the {what} has as well; they would lose answers: {mend} \
                 net.ipv4.ip_local_reserved_ports"
            ));
        }
        // What the kernel has given to a program that asks others has been told of.
        let is_given = |port: u16| own.is_some_and(|own| own.contains(port)) && !is_reserved(port);
        let listening = |table: &[Socket], protocol| {
            let at = table.iter().filter(|_| of.protocols.list().contains(&protocol)).filter(|it| it.is_at(address));
            let ports = at.map(|socket| socket.port).filter(|port| ports.contains(*port));
            ports.filter(|port| protocol == Protocol::TCP || !is_given(*port)).min()
        };
        for (port, word) in [(listening(&tcp, Protocol::TCP), ""), (listening(&udp, Protocol::UDP), "UDP ")] {
            let Some(port) = port else { continue };
            warnings.push(match is_forward {
                true => format!(
                    "{subject}: this host listens at {word}port {port} of {address}, which is forwarded; what comes there \
                     goes inside: forward another port, or have the program listen elsewhere"
                ),
                false => format!(
                    "{subject}: this host listens at {word}port {port} of {address}, which is one of the pool's {ports}; \
                     clients would not be answered: give the pool other ports"
                ),
            });
        }
    }
    warnings
}

fn all(spec: &SnapshotSpec) -> impl Iterator<Item = Ports<'_>> {
    let masquerades = spec.masquerades.iter().map(|masquerade| {
        let PoolSpec { addresses, ports } = &masquerade.pool;
        let (subject, protocols) = (format!("masquerade {:?}", masquerade.name), Protocols::TcpAndUdp);
        Ports { subject, addresses, ports: *ports, protocols, is_forward: false }
    });
    let fullnat = spec.services.iter().filter(|service| service.all_methods().contains(&Method::Fullnat));
    let fullnat = fullnat.map(|service| {
        let PoolSpec { addresses, ports } = &service.pool;
        let (subject, protocols) = (format!("service {:?}", service.name), service.protocols);
        Ports { subject, addresses, ports: *ports, protocols, is_forward: false }
    });
    let forwards = spec.forwards.iter().map(|forward| {
        let (subject, addresses) = (format!("forward {:?}", forward.name), std::slice::from_ref(&forward.address));
        Ports { subject, addresses, ports: forward.ports, protocols: forward.protocols, is_forward: true }
    });
    masquerades.chain(fullnat).chain(forwards)
}

/// Where a program listens, or waits for datagrams of anybody.
struct Socket {
    is_v4: bool,
    /// Of the address, as in a packet.
    bytes: Vec<u8>,
    port: u16,
}

impl Socket {
    /// Whether it is at this address, or at all addresses. One of IPv6 at all of them takes IPv4 as well.
    fn is_at(&self, address: Addr) -> bool {
        let is_any = (address.is_v4() || !self.is_v4) && self.bytes.iter().all(|byte| *byte == 0);
        is_any || self.bytes == address.wire()
    }
}

/// Those of `/proc/net/tcp` and `tcp6`, or of `udp` and `udp6`.
fn sockets(protocol: &str, read: impl Fn(&str) -> String) -> Vec<Socket> {
    /// `TCP_LISTEN` and `TCP_CLOSE` (include/net/tcp_states.h), which stands for a UDP socket that is not connected.
    const LISTEN: &str = "0A";
    const CLOSE: &str = "07";
    let wanted = if protocol == "tcp" { LISTEN } else { CLOSE };
    let tables = [(true, ""), (false, "6")].map(|(is_v4, suffix)| (is_v4, read(&format!("net/{protocol}{suffix}"))));
    tables.iter().flat_map(|(is_v4, table)| table.lines().filter_map(|line| socket(line, *is_v4, wanted))).collect()
}

/// A line, if its socket is in the state `wanted`.
fn socket(line: &str, is_v4: bool, wanted: &str) -> Option<Socket> {
    let mut words = line.split_whitespace().skip(1);
    let (local, state) = (words.next()?, words.nth(1)?);
    let (at, port) = local.split_once(':').filter(|_| state == wanted)?;
    // Words of four bytes, each in the byte order of the host.
    let mut bytes = Vec::new();
    for word in at.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    Some(Socket { is_v4, bytes, port: u16::from_str_radix(port, 16).ok()? })
}

/// Whether the host gives away some port that is the pool's.
fn shares(pool: PortRange, own: PortRange, is_reserved: impl Fn(u16) -> bool) -> bool {
    (pool.first.max(own.first)..=pool.last.min(own.last)).any(|port| !is_reserved(port))
}

/// The larger part of the pool's ports on one side of the host's own.
fn apart(pool: PortRange, own: PortRange) -> Option<PortRange> {
    let below = own.first.checked_sub(1).map(|last| PortRange { last, ..pool });
    let above = own.last.checked_add(1).map(|first| PortRange { first, ..pool });
    let size = |range: &PortRange| range.last.saturating_sub(range.first);
    below.into_iter().chain(above).filter(|range| range.first < range.last).max_by_key(size)
}

/// `32768 60999`, `40000-41000` or `8080`.
fn range(text: &str) -> Option<PortRange> {
    let mut ends = text.split(|c: char| c == '-' || c.is_whitespace()).filter_map(|end| end.parse().ok());
    let first = ends.next()?;
    Some(PortRange { first, last: ends.next().unwrap_or(first) })
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    /// The warnings of a masquerade behind 198.51.100.1 with these ports, on a host with these parameters.
    fn found(ports: &str, own: &str, reserved: &str) -> Vec<String> {
        found_with(ports, own, reserved, "")
    }

    fn found_with(ports: &str, own: &str, reserved: &str, listening: &str) -> Vec<String> {
        let text = format!(
            "[[masquerade]]\nname = \"lan\"\nfrom = [\"10.20.0.0/24\"]\nto = [\"198.51.100.1\", \"203.0.113.1\"]\nports = \"{ports}\"\n"
        );
        found_of(&text, (own, reserved), ("tcp", listening))
    }

    /// Of a configuration, on a host with these parameters and this table of sockets.
    fn found_of(text: &str, (own, reserved): (&str, &str), (table, sockets): (&str, &str)) -> Vec<String> {
        let proc = tempfile::tempdir().expect("a place for temporary files");
        std::fs::create_dir_all(proc.path().join("net")).expect("a directory of our own");
        std::fs::write(proc.path().join("net").join(table), sockets).expect("a file of our own");
        let directory = proc.path().join("sys/net/ipv4");
        std::fs::create_dir_all(&directory).expect("a directory of our own");
        for (name, value) in [("ip_local_port_range", own), ("ip_local_reserved_ports", reserved)] {
            std::fs::write(directory.join(name), value).expect("a file of our own");
        }
        let config = Config::parse(Path::new("x.toml"), text).unwrap_or_else(|errors| panic!("{errors}"));
        let spec = super::super::compile(&config).unwrap_or_else(|errors| panic!("{errors}"));
        warnings(&spec, |addr| addr.to_string() == "198.51.100.1", proc.path())
    }

    #[test]
    fn ports_that_the_host_gives_away_as_well_are_named() {
        assert_eq!(
            found("1024-65535", "32768\t60999\n", "\n"),
            [
                "masquerade \"lan\": 198.51.100.1 is an address of this host, whose own connections use the ports 32768-60999 \
                 (net.ipv4.ip_local_port_range) that the pool has as well; they would lose answers: give the pool the ports \
                 \"1024-32767\", or name its ports in net.ipv4.ip_local_reserved_ports"
            ]
        );
        assert!(found("20000-65535", "10000 30000", "")[0].contains("\"30001-65535\""));
        assert!(found("40000-50000", "32768 60999", "8080,40000-49999")[0].contains("name the pool's ports in"));
    }

    #[test]
    fn ports_apart_are_no_trouble() {
        for (ports, own, reserved) in [
            ("1024-32767", "32768\t60999\n", ""),
            ("61000-65535", "32768 60999", ""),
            ("40000-50000", "32768 60999", "8080,40000-50000\n"),
            ("1024-65535", "", ""),
        ] {
            assert_eq!(found(ports, own, reserved), [""; 0], "{ports} {own} {reserved}");
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn ports_that_programs_listen_at_are_named() {
        // 198.51.100.1:8081 and 0.0.0.0:22 listen, 10.0.0.1:9000 does elsewhere, and 198.51.100.1:5000 is connected.
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n   0: 016433C6:1F91 00000000:0000 0A 00000000:00000000\n   \
                     1: 00000000:0016 00000000:0000 0A 00000000:00000000\n   2: 0100000A:2328 00000000:0000 0A 0:0\n   \
                     3: 016433C6:1388 026433C6:0050 01 0:0\n";
        let of = |ports: &str| found_with(ports, "32768 60999", "", table);
        assert_eq!(
            of("1024-32767"),
            [
                "masquerade \"lan\": this host listens at port 8081 of 198.51.100.1, which is one of the pool's 1024-32767; \
                 clients would not be answered: give the pool other ports"
            ]
        );
        assert!(of("1-1024")[0].contains("port 22 of"));
        assert_eq!(of("8082-32767"), [""; 0]);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn datagrams_and_forwarded_ports_are_looked_at_as_well() {
        // 198.51.100.1:5353, [::]:53, and at all addresses of IPv6 or IPv4 a port that the kernel has given away; 9000 is connected.
        let udp = "  sl  local_address rem_address   st\n 1: 016433C6:14E9 00000000:0000 07 0:0\n \
                   2: 00000000:9C40 00000000:0000 07 0:0\n 3: 016433C6:2328 026433C6:0035 01 0:0\n";
        let udp6 = "  sl  local_address rem_address   st\n \
                    1: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 0:0\n";
        let ports = ("32768 60999", "40000-40001");
        let lan = "[[masquerade]]\nname = \"lan\"\nfrom = [\"10.20.0.0/24\"]\nto = [\"198.51.100.1\"]\nports = \"5000-9000\"\n";
        let listens = |found: &[String], at: &str| found.len() == 1 && found[0].contains(at);
        assert!(listens(&found_of(lan, ports, ("udp", udp)), "at UDP port 5353 of 198.51.100.1, which is one of"));
        assert_eq!(found_of(lan, ports, ("udp6", udp6)), [""; 0]);
        let forward = |port: u16, protocol: &str| {
            format!(
                "[[forward]]\nname = \"in\"\nlisten = \"198.51.100.1:{port}\"\nprotocol = \"{protocol}\"\nto = \"10.20.0.2\"\n"
            )
        };
        assert!(listens(
            &found_of(&forward(53, "udp"), ports, ("udp6", udp6)),
            "at UDP port 53 of 198.51.100.1, which is forw"
        ));
        assert_eq!(found_of(&forward(53, "tcp"), ports, ("udp6", udp6)), [""; 0]);
        assert_eq!(found_of(&forward(9000, "udp"), ports, ("udp", udp)), [""; 0]);
        // A program has it since it was reserved: the kernel gives it to nobody.
        assert!(listens(&found_of(&forward(40000, "udp"), ports, ("udp", udp)), "at UDP port 40000"));
        let own = found_of(&forward(40000, "udp"), ("32768 60999", ""), ("udp", udp));
        assert!(
            listens(&own, "that the forward has as well; they would lose answers: name its ports in net.ipv4"),
            "{own:?}"
        );
    }
}
