//! The rules as `-S` writes and `-R` reads them: each line is the arguments of one command.

use super::command::{Command, Timeouts};
use super::names::Printer;
use super::table::{Server, Service, Table};
use crate::timeouts;

/// Every rule. Besides what the original has, thresholds (`-x`, `-y`) where there are any, and a line `--set` where the
/// timeouts are neither those of IPVS nor gatun's own: the original reads both.
pub fn rules(table: &Table, printer: &Printer<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    if !is_usual(table.timeouts) {
        lines.push(Command::SetTimeouts(table.timeouts).to_string());
    }
    let mut services: Vec<&Service> = table.services.iter().collect();
    services.sort_by_key(|service| service.settings.key);
    for service in services {
        let key = &service.settings.key;
        lines.push(format!("-A {}", service.settings.options(printer)));
        let mut servers: Vec<&Server> = service.servers.iter().collect();
        servers.sort_by_key(|server| server.settings.at);
        let of_server = |server: &&Server| {
            format!("-a {} {}", key.options(printer), server.settings.options(key.protocol(), printer))
        };
        lines.extend(servers.iter().map(of_server));
    }
    lines
}

/// Nobody has set them.
fn is_usual(timeouts: Timeouts) -> bool {
    [timeouts::Timeouts::RFC, timeouts::Timeouts::IPVS].iter().any(|usual| {
        let same = |seconds: u32, usual: std::time::Duration| u64::from(seconds) == usual.as_secs();
        same(timeouts.tcp, usual.tcp_established)
            && same(timeouts.tcp_fin, usual.tcp_fin_wait)
            && same(timeouts.udp, usual.udp)
    })
}

/// The words of a line. A leading `ipvsadm` and comments are skipped; a line without any words says nothing.
pub fn words(line: &str) -> Vec<String> {
    let words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
    words.filter(|word| *word != "ipvsadm").map(str::to_owned).collect()
}
