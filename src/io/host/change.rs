//! One change to the host: what it is, and how an operator would type it.
//!
//! A [`Change`] is plain data: it can be compared (a reload makes the difference of two lists), written to
//! the record on disk before it is made, and printed as a command of ip(8) or sysctl(8).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The number under which routes, rules and proxy entries of gatun are marked (`RTA_PROTOCOL`, `FRA_PROTOCOL`,
/// `NDA_PROTOCOL`), so that they can be told from everybody else's. Not assigned in rtnetlink.h.
pub const PROTOCOL: u8 = 0x67;

/// `RT_TABLE_MAIN` and `RT_TABLE_LOCAL` (include/uapi/linux/rtnetlink.h).
pub const TABLE_MAIN: u32 = 254;
pub const TABLE_LOCAL: u32 = 255;

/// The IPv4 dummy address (RFC 7600 section 4.8, 192.0.0.8). With scope `host` nothing is ever sent from it.
pub const ANCHOR: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The directory of `/proc/sys/net` and the word after `ip`.
    pub fn sysctl_dir(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }

    /// The protocol number of this family's ICMP.
    pub fn icmp(self) -> u8 {
        match self {
            Family::V4 => 1,
            Family::V6 => 58,
        }
    }

    pub fn any(self) -> IpNet {
        match self {
            Family::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Family::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
        }
    }
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

impl Ports {
    pub fn one(port: u16) -> Self {
        Ports { first: port, last: port }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Lookup(u32),
    Goto(u32),
    Nop,
}

/// A policy routing rule (`ip rule`). What is `None` matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    pub family: Family,
    pub pref: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<Ports>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<Ports>,
    pub action: Action,
}

impl Rule {
    pub fn new(family: Family, pref: u32, action: Action) -> Self {
        Rule { family, pref, from: None, to: None, iif: None, protocol: None, sport: None, dport: None, action }
    }

    pub fn from(mut self, net: IpNet) -> Self {
        self.from = Some(net);
        self
    }

    pub fn to(mut self, net: IpNet) -> Self {
        self.to = Some(net);
        self
    }

    pub fn iif(mut self, name: &str) -> Self {
        self.iif = Some(name.to_owned());
        self
    }

    pub fn protocol(mut self, protocol: impl Into<Option<u8>>) -> Self {
        self.protocol = protocol.into();
        self
    }

    pub fn sport(mut self, ports: impl Into<Option<Ports>>) -> Self {
        self.sport = ports.into();
        self
    }

    pub fn dport(mut self, ports: impl Into<Option<Ports>>) -> Self {
        self.dport = ports.into();
        self
    }

    /// A rule that looks every packet up in the local table.
    pub fn is_plain_local(&self) -> bool {
        *self == Rule::new(self.family, self.pref, Action::Lookup(TABLE_LOCAL))
    }
}

/// A route of the main table in another one, with an MSS of its own. Without hops it says that the main table goes on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReplyRoute {
    pub table: u32,
    pub destination: IpNet,
    #[serde(default)]
    pub tos: u8,
    /// The metric, by which routes to the same destination are told apart.
    pub priority: u32,
    pub advmss: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    pub hops: Vec<Hop>,
}

/// One of the ways of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hop {
    pub device: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// As the kernel has it: one less than the weight.
    #[serde(default)]
    pub weight: u8,
    /// The gateway is on the link whatever the addresses say.
    #[serde(default)]
    pub onlink: bool,
}

impl ReplyRoute {
    /// Whether one would replace the other.
    pub fn same_place(&self, other: &ReplyRoute) -> bool {
        let place = |route: &ReplyRoute| (route.table, route.destination, route.tos, route.priority);
        place(self) == place(other)
    }

    /// For a route that cannot be made: the main table goes on.
    pub fn throw(&self) -> ReplyRoute {
        ReplyRoute { hops: Vec::new(), ..self.clone() }
    }
}

/// A property of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkProperty {
    Mtu(u32),
    TxQueueLen(u32),
    Up(bool),
}

/// One change to the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Link {
        device: String,
        property: LinkProperty,
    },
    /// The device becomes a port of a bridge.
    Port {
        device: String,
        bridge: String,
    },
    /// `path` below `/proc/sys`, as `net/ipv4/conf/eth0/forwarding`.
    Sysctl {
        path: String,
        value: String,
    },
    /// IPv6 forwarding of the whole namespace, for kernels that know no `force_forwarding` of one interface.
    /// It overwrites the forwarding flag of every interface, hence a change of its own.
    ForwardAll6,
    Rule(Rule),
    Route {
        table: u32,
        destination: IpNet,
        device: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<IpAddr>,
    },
    /// [`ANCHOR`] on the device.
    Anchor {
        device: String,
    },
    /// A VIP as an address of the device, never the source of what the host begins by itself.
    Address {
        address: IpAddr,
        device: String,
    },
    /// The copy of a route, for replies.
    Reply(ReplyRoute),
    /// Answer ARP or NDP for `address` on `device`.
    Proxy {
        address: IpAddr,
        device: String,
    },
    /// Move the rule of the local table behind the rules that lead local VIPs to the device. Shared by all
    /// gateways of the host: the last one that goes moves it back.
    MoveLocal(Family),
}

impl Change {
    /// Two changes with the same key are the same thing with another value: the second replaces the first.
    pub fn same_place(&self, other: &Change) -> bool {
        match (self, other) {
            (Change::Link { device: a, property: p }, Change::Link { device: b, property: q }) => {
                a == b && std::mem::discriminant(p) == std::mem::discriminant(q)
            }
            (Change::Sysctl { path: a, .. }, Change::Sysctl { path: b, .. })
            | (Change::Port { device: a, .. }, Change::Port { device: b, .. }) => a == b,
            (Change::Route { table: a, destination: x, .. }, Change::Route { table: b, destination: y, .. }) => {
                a == b && x == y
            }
            (Change::Reply(a), Change::Reply(b)) => a.same_place(b),
            _ => self == other,
        }
    }

    /// The commands that make this change by hand. `moved` gives the rules of the local table that
    /// [`Change::MoveLocal`] has to move, as (from, to).
    pub fn commands(&self, moved: &[(u32, u32)]) -> Vec<String> {
        match self {
            Change::MoveLocal(family) => moved
                .iter()
                .flat_map(|(from, to)| {
                    let ip = ip(*family);
                    [format!("{ip} rule add pref {to} lookup local"), format!("{ip} rule del pref {from} lookup local")]
                })
                .collect(),
            other => vec![other.to_string()],
        }
    }
}

/// The command for a family.
pub fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip -6",
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Link { device, property } => match property {
                LinkProperty::Mtu(mtu) => write!(f, "ip link set dev {device} mtu {mtu}"),
                LinkProperty::TxQueueLen(n) => write!(f, "ip link set dev {device} txqueuelen {n}"),
                LinkProperty::Up(true) => write!(f, "ip link set dev {device} up"),
                LinkProperty::Up(false) => write!(f, "ip link set dev {device} down"),
            },
            Change::Port { device, bridge } => write!(f, "ip link set dev {device} master {bridge}"),
            // The name of an interface may hold a dot, which sysctl's dotted form would take for a separator.
            Change::Sysctl { path, value } if path.contains('.') => write!(f, "sysctl -w {path}={value}"),
            Change::Sysctl { path, value } => write!(f, "sysctl -w {}={value}", path.replace('/', ".")),
            Change::ForwardAll6 => write!(f, "sysctl -w net.ipv6.conf.all.forwarding=1"),
            Change::Rule(rule) => write!(f, "{rule}"),
            Change::Route { table, destination, device, source } => {
                let family = Family::of(destination.addr());
                write!(f, "{} route add {destination} dev {device}", ip(family))?;
                if *table != TABLE_MAIN {
                    write!(f, " table {table}")?;
                }
                if let Some(source) = source {
                    write!(f, " src {source}")?;
                }
                Ok(())
            }
            Change::Anchor { device } => write!(f, "ip addr add {ANCHOR}/32 dev {device} scope host"),
            Change::Address { address: address @ IpAddr::V4(_), device } => {
                write!(f, "ip addr add {address}/32 dev {device} scope host")
            }
            Change::Address { address, device } => {
                write!(f, "ip -6 addr add {address}/128 dev {device} preferred_lft 0 nodad noprefixroute")
            }
            Change::Reply(route) => write!(f, "{route}"),
            Change::Proxy { address, device } => {
                write!(f, "{} neigh add proxy {address} dev {device}", ip(Family::of(*address)))
            }
            Change::MoveLocal(family) => write!(f, "{} rule: local table behind the VIPs", ip(*family)),
        }
    }
}

impl fmt::Display for ReplyRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.hops.is_empty() { "throw " } else { "" };
        write!(f, "{} route add {kind}{}", ip(Family::of(self.destination.addr())), self.destination)?;
        for hop in &self.hops {
            if self.hops.len() > 1 {
                write!(f, " nexthop")?;
            }
            if let Some(gateway) = hop.gateway {
                write!(f, " via {gateway}")?;
            }
            write!(f, " dev {}", hop.device)?;
            if self.hops.len() > 1 {
                write!(f, " weight {}", u16::from(hop.weight) + 1)?;
            }
            if hop.onlink {
                write!(f, " onlink")?;
            }
        }
        write!(f, " table {}", self.table)?;
        if self.priority > 0 {
            write!(f, " metric {}", self.priority)?;
        }
        if self.hops.is_empty() { Ok(()) } else { write!(f, " advmss {}", self.advmss) }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule add pref {}", ip(self.family), self.pref)?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        if let Some(protocol) = self.protocol {
            match protocol {
                1 => write!(f, " ipproto icmp")?,
                6 => write!(f, " ipproto tcp")?,
                17 => write!(f, " ipproto udp")?,
                58 => write!(f, " ipproto ipv6-icmp")?,
                132 => write!(f, " ipproto sctp")?,
                n => write!(f, " ipproto {n}")?,
            }
        }
        if let Some(ports) = self.sport {
            write!(f, " sport {ports}")?;
        }
        if let Some(ports) = self.dport {
            write!(f, " dport {ports}")?;
        }
        match self.action {
            Action::Lookup(TABLE_LOCAL) => write!(f, " lookup local"),
            Action::Lookup(TABLE_MAIN) => write!(f, " lookup main"),
            Action::Lookup(table) => write!(f, " lookup {table}"),
            Action::Goto(pref) => write!(f, " goto {pref}"),
            Action::Nop => write!(f, " nop"),
        }
    }
}
