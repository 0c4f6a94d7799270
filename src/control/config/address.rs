//! Where services listen and where servers are: `203.0.113.10:80`, `[2001:db8:f::10]:8000-8099`, `203.0.113.10:*`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::service::PortRange;
use crate::wire::Addr;

/// Where a service listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    pub vip: Addr,
    pub ports: PortRange,
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", bracketed(self.vip), self.ports)
    }
}

/// Where a server is. Without a port it is the one that the client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerAddress {
    pub address: Addr,
    pub port: Option<u16>,
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address.ip(), port).fmt(f),
            None => f.write_str(&bracketed(self.address)),
        }
    }
}

fn bracketed(addr: Addr) -> String {
    if addr.is_v4() { addr.to_string() } else { format!("[{addr}]") }
}

const NO_ADDRESS: &str = r#"is no IP address; write "203.0.113.10:80" or "[2001:db8::1]:80""#;

const NO_ADDRESS_BEFORE: &str = r#"has no address; write "203.0.113.10:80" or "[2001:db8::1]:80""#;

/// Where no port belongs.
const NO_ADDRESS_ALONE: &str = r#"is no IP address; write for example "203.0.113.10" or "2001:db8::1""#;

const NO_BRACKETS: &str = r#"is an IPv6 address without brackets; write "[2001:db8::1]:80""#;

pub(super) const NO_NAMES: &str = "is no IP address; names are not looked up";

/// On failure says what is wrong, as the end of a sentence that begins with the text.
pub fn parse_listen(text: &str) -> Result<Listen, String> {
    let (address, ports) = split(text)?;
    if ports.is_none() && !text.starts_with('[') && address.contains(':') {
        return Err(NO_BRACKETS.to_owned());
    }
    let ports = ports.ok_or(r#"has no port; add ":80", a range as ":8000-8099", or ":*" for all ports"#)?;
    let vip = parse_address(address, "is no IP address of a service")?;
    Ok(Listen { vip, ports: parse_ports(ports)? })
}

/// On failure says what is wrong, as the end of a sentence that begins with the text.
pub fn parse_server(text: &str) -> Result<ServerAddress, String> {
    let (address, port) = split(text)?;
    let address = parse_address(address, "is no IP address of a server")?;
    let Some(port) = port else { return Ok(ServerAddress { address, port: None }) };
    let ports = match port {
        "*" => Err(r#"needs no ":*"; without a port, the one that the client asked for is kept"#.to_owned()),
        port => parse_ports(port),
    }?;
    if !ports.is_single() {
        return Err("has a range of ports; give the first one, the others follow the ports of the service".to_owned());
    }
    Ok(ServerAddress { address, port: Some(ports.first) })
}

/// An address without a port; `unfit` is what to say of one that is no single host's. Brackets are allowed.
pub(super) fn parse_plain(text: &str, unfit: &str) -> Result<Addr, String> {
    let found = split(text).and_then(|(address, port)| match port {
        None => parse_address(address, unfit),
        Some(_) => Err("has a port; write the address alone".to_owned()),
    });
    // What these ask for has a port.
    let has_port = |wrong: &String| [NO_ADDRESS, NO_ADDRESS_BEFORE, NO_BRACKETS].contains(&wrong.as_str());
    found.map_err(|wrong| if has_port(&wrong) { NO_ADDRESS_ALONE.to_owned() } else { wrong })
}

/// Splits address from ports, without the brackets of an IPv6 address. One without brackets has no port: its last group
/// cannot be told from one.
fn split(text: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, behind) = rest.split_once(']').ok_or(r#"lacks the "]" after the IPv6 address"#)?;
        return match behind.strip_prefix(':') {
            Some(ports) => Ok((address, Some(ports))),
            None if behind.is_empty() => Ok((address, None)),
            None => Err(r#"has something other than ":PORT" after the "]""#.to_owned()),
        };
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok((text, None));
    }
    match text.split_once(':') {
        Some((_, behind)) if behind.contains(':') => Err(NO_BRACKETS.to_owned()),
        Some(("", _)) => Err(NO_ADDRESS_BEFORE.to_owned()),
        Some((address, ports)) => Ok((address, Some(ports))),
        None => Ok((text, None)),
    }
}

pub(super) fn parse_address(text: &str, unfit: &str) -> Result<Addr, String> {
    let Ok(ip) = text.parse::<IpAddr>() else {
        return Err(match text.contains('%') {
            true => "has a zone; gatun forwards to addresses that mean the same on every interface".to_owned(),
            false if text.contains(|c: char| c.is_ascii_alphabetic()) && !text.contains(':') => NO_NAMES.to_owned(),
            false => NO_ADDRESS.to_owned(),
        });
    };
    let addr = Addr::from(ip);
    match special(addr.ip()) {
        Some(what) => Err(format!("{unfit}: it is {what}")),
        None => Ok(addr),
    }
}

/// Addresses that are no single host's, or that no other host can send to.
fn special(ip: IpAddr) -> Option<&'static str> {
    match ip {
        ip if ip.is_unspecified() => Some("unspecified"),
        ip if ip.is_loopback() => Some("a loopback address"),
        ip if ip.is_multicast() => Some("a multicast address"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("the broadcast address"),
        IpAddr::V4(ip) if ip.octets()[0] == 0 => Some("of \"this network\" (RFC 1122)"),
        IpAddr::V4(ip) if ip.octets()[0] >= 240 => Some("reserved (RFC 1112)"),
        IpAddr::V6(ip) if is_link_local(ip) => Some("link-local"),
        _ => None,
    }
}

fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

pub(super) fn parse_ports(text: &str) -> Result<PortRange, String> {
    if text == "*" {
        return Ok(PortRange::ALL);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| {
        // `parse` would take a sign.
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|&port| digits && port > 0)
    };
    let (Some(first), Some(last)) = (port(first), port(last)) else {
        return Err(format!("has no port in {text:?}; ports are 1 to 65535, a range is \"8000-8099\", all are \"*\""));
    };
    if first > last {
        return Err(format!("has its port range the wrong way round; write \"{last}-{first}\""));
    }
    Ok(PortRange { first, last })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn listen_forms() {
        let rows = [
            ("203.0.113.10:80", Some(("203.0.113.10", 80, 80))),
            ("[2001:db8:f::10]:80", Some(("2001:db8:f::10", 80, 80))),
            ("203.0.113.10:8000-8099", Some(("203.0.113.10", 8000, 8099))),
            ("203.0.113.10:8000-8000", Some(("203.0.113.10", 8000, 8000))),
            ("203.0.113.10:*", Some(("203.0.113.10", 1, 65535))),
            ("[2001:db8:f::10]:*", Some(("2001:db8:f::10", 1, 65535))),
            ("[::ffff:203.0.113.10]:80", Some(("203.0.113.10", 80, 80))),
            ("203.0.113.10", None),
            ("203.0.113.10:", None),
            ("203.0.113.10:0", None),
            ("203.0.113.10:+80", None),
            ("203.0.113.10:65536", None),
            ("203.0.113.10:90-80", None),
            ("203.0.113.10:80-", None),
            ("203.0.113.010:80", None),
            ("2001:db8:f::10:80", None),
            ("2001:db8:f::10", None),
            ("[2001:db8:f::10", None),
            ("[2001:db8:f::10]80", None),
            ("[203.0.113.300]:80", None),
            ("www.example.org:80", None),
            ("[fe80::1%eth0]:80", None),
            ("[fe80::1]:80", None),
            ("0.0.0.0:80", None),
            ("127.0.0.1:80", None),
            ("224.0.0.1:80", None),
            ("255.255.255.255:80", None),
            ("[::1]:80", None),
            (":80", None),
            ("", None),
        ];
        for (text, expected) in rows {
            let expected = expected.map(|(vip, first, last)| {
                let vip: IpAddr = vip.parse().expect("a row of this test");
                Listen { vip: vip.into(), ports: PortRange { first, last } }
            });
            assert_eq!(parse_listen(text).ok(), expected, "{text:?}: {:?}", parse_listen(text));
        }
    }

    #[test]
    fn server_forms() {
        for text in ["10.20.0.11:8080", "10.20.0.11", "[fd20::11]:8080", "[fd20::11]"] {
            assert_eq!(parse_server(text).map(|server| server.to_string()), Ok(text.to_owned()));
        }
        // Without brackets there is no port: the last group is a part of the address.
        for text in ["fd20::11", "fd20::11:8080"] {
            let server = ServerAddress { address: text.parse::<IpAddr>().expect("an address").into(), port: None };
            assert_eq!(parse_server(text), Ok(server));
        }
        for text in [
            "fd20::11:80801",
            "fd20:0:0:0:0:0:0:11:80",
            "fe80::1",
            "10.20.0.11:80-90",
            "10.20.0.11:*",
            "10.20.0.11:0",
            "",
        ] {
            assert!(parse_server(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(bytes: [u8; 16], v4: bool, first: u16, last: u16) {
            let vip = if v4 { Addr::from_v4([bytes[0], bytes[1], bytes[2], bytes[3]]) } else { Addr::from_v6(bytes) };
            prop_assume!(special(vip.ip()).is_none());
            let (first, last) = (first.min(last).max(1), first.max(last).max(1));
            let listen = Listen { vip, ports: PortRange { first, last } };
            prop_assert_eq!(parse_listen(&listen.to_string()), Ok(listen));
            for port in [None, Some(first)] {
                let server = ServerAddress { address: vip, port };
                prop_assert_eq!(parse_server(&server.to_string()), Ok(server));
            }
        }

        #[test]
        fn rubbish_is_refused_without_a_panic(text in "[0-9a-f:.\\[\\]%*é-]{0,20}") {
            let _ = (parse_listen(&text), parse_server(&text));
        }
    }
}
