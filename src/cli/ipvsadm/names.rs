//! Names of hosts and ports: in what is read, and in what is printed without `-n`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};

use super::command::{Ports, Protocol};
use crate::io::names::name_of;

/// Bytes of an address with its port, as the original cuts them.
const LONGEST: usize = 59;

/// Who knows names.
pub trait Names {
    /// The first IPv4 address of a host, as gethostbyname(3) finds it.
    fn host(&self, name: &str) -> Option<Ipv4Addr>;
    fn port(&self, name: &str, protocol: Protocol) -> Option<u16>;
    fn host_name(&self, address: IpAddr) -> Option<String>;
    fn port_name(&self, port: u16, protocol: Protocol) -> Option<String>;
}

/// This host's resolver and its /etc/services.
#[derive(Debug)]
pub struct System {
    services: Vec<Entry>,
}

/// A name of a port in /etc/services.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    port: u16,
    protocol: String,
    is_alias: bool,
}

impl System {
    pub fn new() -> System {
        System { services: entries(&fs::read_to_string("/etc/services").unwrap_or_default()) }
    }
}

impl Names for System {
    fn host(&self, name: &str) -> Option<Ipv4Addr> {
        let mut found = (name, 0).to_socket_addrs().ok()?;
        found.find_map(|address| match address.ip() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    }

    fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let fits = |entry: &&Entry| entry.name == name && entry.protocol == protocol.word();
        self.services.iter().find(fits).map(|entry| entry.port)
    }

    fn host_name(&self, address: IpAddr) -> Option<String> {
        name_of(address)
    }

    fn port_name(&self, port: u16, protocol: Protocol) -> Option<String> {
        let fits = |entry: &&Entry| entry.port == port && entry.protocol == protocol.word() && !entry.is_alias;
        self.services.iter().find(fits).map(|entry| entry.name.clone())
    }
}

/// The lines of services(5): `http  80/tcp  www  # comment`.
fn entries(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let (Some(name), Some((port, protocol))) = (words.next(), words.next().and_then(|word| word.split_once('/')))
        else {
            continue;
        };
        let Ok(port) = port.parse() else { continue };
        for (number, name) in std::iter::once(name).chain(words).enumerate() {
            let entry = Entry { name: name.to_owned(), port, protocol: protocol.to_owned(), is_alias: number > 0 };
            entries.push(entry);
        }
    }
    entries
}

/// Writes addresses and ports, as numbers or by name.
#[derive(Clone, Copy)]
pub struct Printer<'a> {
    names: Option<&'a dyn Names>,
}

impl<'a> Printer<'a> {
    pub const fn numeric() -> Printer<'static> {
        Printer { names: None }
    }

    /// Names unless `numeric`.
    pub fn new(names: &'a dyn Names, numeric: bool) -> Printer<'a> {
        Printer { names: (!numeric).then_some(names) }
    }

    /// `10.0.0.1:80`, `[2001:db8::1]:http`.
    pub fn endpoint(&self, address: IpAddr, ports: Ports, protocol: Protocol) -> String {
        let host = self.names.and_then(|names| names.host_name(address)).unwrap_or_else(|| address.to_string());
        let named = |names: &dyn Names| names.port_name(ports.first, protocol).filter(|_| ports.first == ports.last);
        let port = self.names.and_then(named).unwrap_or_else(|| ports.to_string());
        let text = if address.is_ipv6() { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        cut(text, LONGEST)
    }
}

/// The first `bytes` of a text, or fewer where a character would be cut.
pub fn cut(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let end = (0..=bytes).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read_as_getservbyname_reads_them() {
        let text = "# comment\nhttp\t\t80/tcp\t\twww\t\t# WorldWideWeb\ndomain 53/tcp\ndomain 53/udp nameserver\nbad\nworse x/tcp\n";
        let system = System { services: entries(text) };
        assert_eq!(system.port("www", Protocol::Tcp), Some(80));
        assert_eq!(system.port("www", Protocol::Udp), None);
        assert_eq!(system.port("nameserver", Protocol::Udp), Some(53));
        assert_eq!(system.port("bad", Protocol::Tcp), None);
        assert_eq!(system.port_name(80, Protocol::Tcp).as_deref(), Some("http"));
        assert_eq!(system.port_name(81, Protocol::Tcp), None);
    }

    #[test]
    fn a_name_is_cut_between_characters() {
        assert_eq!(cut("aé".to_owned(), 2), "a");
        assert_eq!(cut("aé".to_owned(), 3), "aé");
    }
}
