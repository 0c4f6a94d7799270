//! Pools at addresses of the gateway's own host, which has connections from there itself.
//!
//! What comes to a port of such a pool is looked at by the gateway first. What belongs to a connection of the host's own does
//! not survive that: the kernel has found its socket by then, and forwards nothing that has one (`ip_forward`,
//! net/ipv4/ip_forward.c). So the two must not use the same ports, neither those that the kernel gives to the host's
//! connections nor those that its programs listen at.

use std::path::Path;

use crate::service::{Method, PortRange, SnapshotSpec};
use crate::wire::Addr;

/// One sentence for each pool at an address that `is_local` and whose ports the host gives to its own connections. `proc`: where
/// the kernel tells which these are.
pub(in crate::control) fn warnings(spec: &SnapshotSpec, is_local: impl Fn(Addr) -> bool, proc: &Path) -> Vec<String> {
    let read = |name: &str| std::fs::read_to_string(proc.join(name)).unwrap_or_default();
    let own = range(&read("sys/net/ipv4/ip_local_port_range"));
    let reserved: Vec<PortRange> = read("sys/net/ipv4/ip_local_reserved_ports").split(',').filter_map(range).collect();
    let masquerades =
        spec.masquerades.iter().map(|masquerade| (format!("masquerade {:?}", masquerade.name), &masquerade.pool));
    let fullnat = spec.services.iter().filter(|service| service.all_methods().contains(&Method::Fullnat));
    let fullnat = fullnat.map(|service| (format!("service {:?}", service.name), &service.pool));
    let mut warnings = Vec::new();
    for (subject, pool) in masquerades.chain(fullnat) {
        for address in pool.addresses.iter().filter(|address| is_local(**address)) {
            if let Some(own) = own.filter(|own| shares(pool.ports, *own, &reserved)) {
                let mend = match apart(pool.ports, own) {
                    Some(rest) => format!("give the pool the ports \"{rest}\", or name its ports in"),
                    None => "name the pool's ports in".to_owned(),
                };
                warnings.push(format!(
                    "{subject}: {address} is an address of this host, whose own connections use the ports {own} \
                     (net.ipv4.ip_local_port_range) that the pool has as well; they would lose answers: {mend} \
                     net.ipv4.ip_local_reserved_ports"
                ));
            }
            let family = if address.is_v4() { "net/tcp" } else { "net/tcp6" };
            let both = [read(family), if address.is_v4() { read("net/tcp6") } else { String::new() }];
            let listening = both.iter().flat_map(|table| table.lines()).filter_map(|line| listener(line, *address));
            if let Some(port) = listening.filter(|port| pool.ports.contains(*port)).min() {
                warnings.push(format!(
                    "{subject}: this host listens at port {port} of {address}, which is one of the pool's {}; clients would \
                     not be answered: give the pool other ports",
                    pool.ports
                ));
            }
        }
    }
    warnings
}

/// The port of a line of `/proc/net/tcp` or `tcp6`, of who listens at `address` or at all addresses.
fn listener(line: &str, address: Addr) -> Option<u16> {
    /// `TCP_LISTEN` (include/net/tcp_states.h).
    const LISTEN: &str = "0A";
    let mut words = line.split_whitespace().skip(1);
    let (local, state) = (words.next()?, words.nth(1)?);
    let (at, port) = local.split_once(':')?;
    // Words of four bytes, each in the byte order of the host.
    let mut bytes = Vec::new();
    for word in at.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let is_any = bytes.iter().all(|byte| *byte == 0);
    (state == LISTEN && (is_any || bytes == address.wire())).then(|| u16::from_str_radix(port, 16).ok())?
}

/// Whether the host gives away some port that is the pool's.
fn shares(pool: PortRange, own: PortRange, reserved: &[PortRange]) -> bool {
    (pool.first.max(own.first)..=pool.last.min(own.last)).any(|port| !reserved.iter().any(|range| range.contains(port)))
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
        let proc = tempfile::tempdir().expect("a place for temporary files");
        std::fs::create_dir_all(proc.path().join("net")).expect("a directory of our own");
        std::fs::write(proc.path().join("net/tcp"), listening).expect("a file of our own");
        let directory = proc.path().join("sys/net/ipv4");
        std::fs::create_dir_all(&directory).expect("a directory of our own");
        for (name, value) in [("ip_local_port_range", own), ("ip_local_reserved_ports", reserved)] {
            std::fs::write(directory.join(name), value).expect("a file of our own");
        }
        let text = format!(
            "[[masquerade]]\nname = \"lan\"\nfrom = [\"10.20.0.0/24\"]\nto = [\"198.51.100.1\", \"203.0.113.1\"]\nports = \"{ports}\"\n"
        );
        let config = Config::parse(Path::new("x.toml"), &text).unwrap_or_else(|errors| panic!("{errors}"));
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
}
