//! What `-L` prints of services, timeouts and daemons.

use std::fmt::Write as _;

use super::command::{Columns, Flags, Forward, Key, List, Listed, Ports, Timeouts};
use super::names::{Printer, cut};
use super::table::{Counts, Server, Service, Table};

/// Bytes that an IPv4 service and an IPv4 server may take; the original cuts what is longer, but for IPv6.
const SERVICE_WIDTH: usize = 33;
const SERVER_WIDTH: usize = 28;
/// What IPVS calls itself, and the size of its hash table by default; scripts skip this line.
const TITLE: &str = "IP Virtual Server version 1.2.1 (size=4096)\n";

/// Services with their servers: all, or the one that is listed, without the title then. The services of `table` that are
/// asked for must be there.
pub fn services(table: &Table, list: &List, printer: &Printer<'_>) -> String {
    let mut text = String::new();
    let mut services: Vec<&Service> = match list.what {
        Listed::One(key) => table.find(&key).into_iter().collect(),
        _ => {
            text += TITLE;
            table.services.iter().collect()
        }
    };
    if !list.unsorted {
        services.sort_by_key(|service| service.settings.key);
    }
    text += &heading(list.columns);
    for entry in services {
        service(&mut text, entry, list, printer);
    }
    text
}

pub fn timeouts(timeouts: Timeouts) -> String {
    let Timeouts { tcp, tcp_fin, udp } = timeouts;
    format!("Timeout (tcp tcpfin udp): {tcp} {tcp_fin} {udp}\n")
}

fn heading(columns: Columns) -> String {
    const LOCAL: &str = "Prot LocalAddress:Port";
    const REMOTE: &str = "  -> RemoteAddress:Port";
    let numbers = |[a, b, c, d, e]: [&str; 5]| format!("{LOCAL:<33} {a:>8} {b:>8} {c:>8} {d:>8} {e:>8}\n{REMOTE}\n");
    match columns {
        Columns::Stats => numbers(["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"]),
        Columns::Rate => numbers(["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"]),
        Columns::Thresholds => {
            let names = format!("{:<10} {:<10} {:<10} {:<10}", "Uthreshold", "Lthreshold", "ActiveConn", "InActConn");
            format!("{LOCAL:<33} {names}\n{REMOTE}\n")
        }
        Columns::PersistentConnections => {
            let names = format!("{:<9} {:<11} {:<10} {:<10}", "Weight", "PersistConn", "ActiveConn", "InActConn");
            format!("{LOCAL:<33} {names}\n{REMOTE}\n")
        }
        Columns::Tunnel => {
            format!("{LOCAL} Scheduler Flags\n{REMOTE:<34}Forward TunnelInfo    Weight ActiveConn InActConn\n")
        }
        Columns::Usual => format!("{LOCAL} Scheduler Flags\n{REMOTE:<34}Forward Weight ActiveConn InActConn\n"),
    }
}

fn service(text: &mut String, entry: &Service, list: &List, printer: &Printer<'_>) {
    let settings = &entry.settings;
    let name = match settings.key {
        Key::Address { protocol, address, ports, is_v6 } => {
            let name = format!("{:<4} {}", protocol.name(), printer.endpoint(address, ports, protocol));
            if is_v6 { name } else { cut(name, SERVICE_WIDTH) }
        }
        Key::Mark { mark, is_v6 } => format!("FWM  {mark}{}", if is_v6 { " IPv6" } else { "" }),
    };
    match list.columns {
        Columns::Stats => *text += &format!("{name:<33}{}", numbers(entry.counts().totals, list.exact)),
        Columns::Rate => *text += &format!("{name:<33}{}", numbers(entry.counts().rates, list.exact)),
        _ => {
            *text += &format!("{name} {}", settings.scheduler);
            if settings.flags != Flags::default() {
                *text += &format!(" ({})", settings.flags.words(&settings.scheduler));
            }
            if let Some(persistence) = settings.persistence {
                *text += &format!(" persistent {}", persistence.timeout);
                if !persistence.mask.is_whole() {
                    *text += &format!(" mask {}", persistence.mask);
                }
                if let Some(engine) = &settings.persistence_engine {
                    *text += &format!(" pe {engine}");
                }
            }
            if settings.one_packet {
                *text += " ops";
            }
        }
    }
    *text += "\n";
    let mut servers: Vec<&Server> = entry.servers.iter().collect();
    if !list.unsorted {
        servers.sort_by_key(|server| server.settings.at);
    }
    for each in servers {
        server(text, &settings.key, each, list, printer);
    }
}

fn server(text: &mut String, key: &Key, server: &Server, list: &List, printer: &Printer<'_>) {
    let real = &server.settings;
    let Counts { active, inactive, persistent, totals, rates } = server.counts;
    let name = printer.endpoint(real.at.address, Ports::single(real.at.port), key.protocol());
    let name = if real.at.address.is_ipv6() { name } else { cut(name, SERVER_WIDTH) };
    let connections = format!("{active:<10} {inactive:<10}");
    // Writing to a String cannot fail.
    let _ = match list.columns {
        Columns::Stats => writeln!(text, "  -> {name:<28}{}", numbers(totals, list.exact)),
        Columns::Rate => {
            let [flows, packets_in, packets_out, bytes @ ..] = rates;
            let bytes = bytes.map(|number| large(number, list.exact)).concat();
            writeln!(text, "  -> {name:<28} {flows:>8} {packets_in:>8} {packets_out:>8}{bytes}")
        }
        Columns::Thresholds => {
            writeln!(text, "  -> {name:<28} {:<10} {:<10} {connections}", real.upper, real.lower)
        }
        Columns::PersistentConnections => {
            writeln!(text, "  -> {name:<28} {:<9} {persistent:<11} {connections}", real.weight)
        }
        Columns::Tunnel => {
            let tunnel = match real.forward {
                Forward::Tunnel(tunnel) => tunnel.to_string(),
                Forward::Masquerade | Forward::Route => "n/a".to_owned(),
            };
            writeln!(text, "  -> {name:<28} {:<7} {tunnel:<13} {:<6} {connections}", real.forward.name(), real.weight)
        }
        Columns::Usual => {
            writeln!(text, "  -> {name:<28} {:<7} {:<6} {connections}", real.forward.name(), real.weight)
        }
    };
}

fn numbers(numbers: [u64; 5], exact: bool) -> String {
    numbers.map(|number| large(number, exact)).concat()
}

/// Nine columns, or more where they are needed; powers of 1000 unless `exact`.
fn large(number: u64, exact: bool) -> String {
    match number {
        _ if exact && number < 100_000_000 => format!("{number:>9}"),
        _ if exact => format!(" {number}"),
        0..100_000_000 => format!("{number:>9}"),
        100_000_000..1_000_000_000 => format!("{:>8}K", number / 1000),
        1_000_000_000..100_000_000_000 => format!("{:>8}M", number / 1_000_000),
        100_000_000_000..100_000_000_000_000 => format!("{:>8}G", number / 1_000_000_000),
        _ => format!("{:>8}T", number / 1_000_000_000_000),
    }
}
