//! Pools with so few ports that some packet workers have none: each takes whole pairs of an even and an odd port, in turn.

use crate::service::{Method, PoolSpec, PortRange, SnapshotSpec};

/// One sentence for each pool with fewer pairs of ports than there are `queues`. Services mostly share theirs: of several with
/// the same ports the first is named.
pub(in crate::control) fn warnings(spec: &SnapshotSpec, queues: usize) -> Vec<String> {
    let masquerades = spec.masquerades.iter().map(|of| (format!("masquerade {:?}", of.name), "ports", &of.pool));
    let fullnat = spec.services.iter().filter(|service| service.all_methods().contains(&Method::Fullnat));
    let mut named: Vec<PortRange> = Vec::new();
    let mut is_first = |ports: PortRange| {
        let is_first = !named.contains(&ports);
        if is_first {
            named.push(ports);
        }
        is_first
    };
    let is_narrow = |pool: &PoolSpec| pairs(pool.ports) < queues && !pool.addresses.is_empty();
    let fullnat = fullnat.map(|service| (service, &service.pool)).filter(|(_, pool)| is_narrow(pool));
    let fullnat = fullnat.filter(|(_, pool)| is_first(pool.ports));
    let fullnat = fullnat.map(|(service, pool)| (format!("service {:?}", service.name), "pool_ports", pool));
    let told = |(subject, key, pool): (String, &str, &PoolSpec)| {
        format!(
            "{subject}: of the {queues} packet workers, each of which takes pairs of ports, some have none of {key} {:?}, and \
             refuse flows: give the pool {} ports at least, or set queues to {}",
            pool.ports.to_string(),
            2 * queues,
            pairs(pool.ports)
        )
    };
    masquerades.filter(|(.., pool)| is_narrow(pool)).chain(fullnat).map(told).collect()
}

/// How many pairs have a port of the range; see [`owner_of_port`](crate::service::owner_of_port).
fn pairs(ports: PortRange) -> usize {
    usize::from(ports.last >> 1) + 1 - usize::from(ports.first >> 1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Config, compile};
    use super::*;

    #[test]
    fn each_worker_needs_a_pair() {
        let text = |ports: &str| {
            let service = |name: &str, port: u16| {
                format!(
                    "[[service]]\nname = \"{name}\"\nlisten = \"203.0.113.10:{port}\"\nmethod = \"fullnat\"\n\
                     server = [{{ address = \"10.20.0.11\" }}]\n"
                )
            };
            let lan = format!(
                "[[masquerade]]\nname = \"lan\"\nfrom = [\"10.40.0.0/24\"]\nto = [\"203.0.113.100\"]\nports = \"{ports}\"\n"
            );
            let nat = format!("[nat]\npool = [\"10.20.0.200\"]\nports = \"{ports}\"\n");
            [nat, service("a", 80), service("b", 81), lan].concat()
        };
        let found = |ports: &str, queues| {
            let config = Config::parse(Path::new("x.toml"), &text(ports)).unwrap_or_else(|errors| panic!("{errors}"));
            warnings(&compile(&config).unwrap_or_else(|errors| panic!("{errors}")), queues)
        };
        let wrong = "of the 4 packet workers, each of which takes pairs of ports, some have none of";
        let mend = "and refuse flows: give the pool 8 ports at least, or set queues to 3";
        assert_eq!(
            found("5001-5005", 4),
            [
                format!("masquerade \"lan\": {wrong} ports \"5001-5005\", {mend}"),
                format!("service \"a\": {wrong} pool_ports \"5001-5005\", {mend}")
            ]
        );
        assert_eq!(found("5001-5006", 4), [""; 0]);
        assert_eq!(found("5001", 1), [""; 0]);
    }
}
