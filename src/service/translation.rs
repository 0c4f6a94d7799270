//! What is configured of translating sources: pools of addresses and ports, masquerades, port forwarding, and the defences
//! that belong to a service.

use std::fmt;

use super::{HelperKind, PortRange, Protocols};
use crate::wire::Addr;

/// An address and how many of its first bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    pub address: Addr,
    /// 0 to 32 or 0 to 128, counted from the family's first bit.
    pub len: u8,
}

impl Network {
    pub fn contains(&self, addr: Addr) -> bool {
        if addr.is_v4() != self.address.is_v4() {
            return false;
        }
        let (addr, net) = (addr.wire(), self.address.wire());
        let whole = usize::from(self.len / 8).min(net.len());
        let rest = if whole == net.len() { 0 } else { self.len % 8 };
        addr[..whole] == net[..whole] && (rest == 0 || (addr[whole] ^ net[whole]) >> (8 - rest) == 0)
    }
}

impl fmt::Display for Network {
    /// `10.20.0.0/24`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// Addresses under which flows go on, and their ports (for ICMP queries: their identifiers) that may be given away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    pub addresses: Vec<Addr>,
    pub ports: PortRange,
}

impl PoolSpec {
    /// What no well-known service is at.
    pub const PORTS: PortRange = PortRange { first: 1024, last: u16::MAX };
}

impl Default for PoolSpec {
    /// Without an address.
    fn default() -> PoolSpec {
        PoolSpec { addresses: Vec::new(), ports: PoolSpec::PORTS }
    }
}

/// From whom a mapping takes packets from outside (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Filtering {
    /// From everybody: endpoint-independent.
    #[default]
    Endpoint,
    /// From addresses that the inside host has sent to.
    Address,
    /// From addresses and ports that it has sent to.
    AddressPort,
}

impl Filtering {
    pub const ALL: [Filtering; 3] = [Filtering::Endpoint, Filtering::Address, Filtering::AddressPort];

    /// The word in the config.
    pub const fn word(self) -> &'static str {
        match self {
            Filtering::Endpoint => "endpoint",
            Filtering::Address => "address",
            Filtering::AddressPort => "address-port",
        }
    }
}

/// A private network that goes out through a pool, or by another prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasqueradeSpec {
    /// Unique among masquerades and services.
    pub name: String,
    /// Inside networks.
    pub from: Vec<Network>,
    /// Destinations that are left alone, besides the inside networks of all masquerades.
    pub except: Vec<Network>,
    /// Empty with [`MasqueradeSpec::prefix`].
    pub pool: PoolSpec,
    /// NPTv6 (RFC 6296): the outside prefix of the one inside network; no state is kept.
    pub prefix: Option<Network>,
    pub filtering: Filtering,
    /// Off by default (RFC 4787 REQ-10, RFC 5382 REQ-6).
    pub helpers: Vec<HelperKind>,
    /// Mappings that one inside host may have at a time.
    pub max_mappings: u32,
}

impl MasqueradeSpec {
    /// Of `max_mappings`: far more than a host needs, and a fraction of an address's ports.
    pub const MAX_MAPPINGS: u32 = 8192;
}

impl Default for MasqueradeSpec {
    fn default() -> MasqueradeSpec {
        MasqueradeSpec {
            name: String::new(),
            from: Vec::new(),
            except: Vec::new(),
            pool: PoolSpec::default(),
            prefix: None,
            filtering: Filtering::default(),
            helpers: Vec::new(),
            max_mappings: MasqueradeSpec::MAX_MAPPINGS,
        }
    }
}

/// Ports of an outside address that lead to an inside host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardSpec {
    /// Unique among forwards.
    pub name: String,
    /// An address of a masquerade's pool, or one of its own.
    pub address: Addr,
    pub ports: PortRange,
    pub protocols: Protocols,
    /// The inside host.
    pub to: Addr,
    /// Where the range begins there; `None`: the same ports.
    pub to_port: Option<u16>,
}

impl ForwardSpec {
    /// The inside endpoint of a port of the outside address.
    pub fn inside_of(&self, port: u16) -> Option<(Addr, u16)> {
        let offset = port.checked_sub(self.ports.first).filter(|_| self.ports.contains(port))?;
        Some((self.to, self.to_port.unwrap_or(self.ports.first).checked_add(offset)?))
    }

    /// The outside endpoint of a port of the inside host.
    pub fn outside_of(&self, port: u16) -> Option<(Addr, u16)> {
        let offset = port.checked_sub(self.to_port.unwrap_or(self.ports.first))?;
        let outside = self.ports.first.checked_add(offset).filter(|port| self.ports.contains(*port))?;
        Some((self.address, outside))
    }
}

/// The version of the PROXY protocol (HAProxy, `doc/proxy-protocol.txt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

impl ProxyProtocol {
    pub const ALL: [ProxyProtocol; 2] = [ProxyProtocol::V1, ProxyProtocol::V2];

    /// The word in the config.
    pub const fn word(self) -> &'static str {
        match self {
            ProxyProtocol::V1 => "v1",
            ProxyProtocol::V2 => "v2",
        }
    }
}

/// When the gateway answers a client's SYN itself, and asks a server only once the client has shown that it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SynProxy {
    /// While more connections than [`super::Limits::half_open`] are half-open.
    #[default]
    Auto,
    Always,
    Never,
}

impl SynProxy {
    pub const ALL: [SynProxy; 3] = [SynProxy::Auto, SynProxy::Always, SynProxy::Never];

    /// The word in the config.
    pub const fn word(self) -> &'static str {
        match self {
            SynProxy::Auto => "auto",
            SynProxy::Always => "always",
            SynProxy::Never => "never",
        }
    }
}
