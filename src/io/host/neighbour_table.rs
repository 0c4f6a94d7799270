//! The kernel's neighbour table, as far as direct routing needs it.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use rtnetlink::Error;

use super::change::Family;
use super::netlink::{Net, address_family, errno, into_io, neighbour_address};

/// A reading of the table.
pub struct NeighbourTable {
    net: Net,
    entries: HashMap<(IpAddr, u32), Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub state: State,
    pub mac: Option<[u8; 6]>,
}

/// What of `NUD_*` matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The kernel found it out, and lets it be verified (`NUD_VALID` but for what follows).
    Valid,
    /// The operator or a routing daemon put it there (`NUD_PERMANENT`, `NUD_NOARP`, `NTF_EXT_LEARNED`): it is believed, and
    /// never touched.
    Fixed,
    /// Being resolved, or not asked for yet.
    Unknown,
    Failed,
}

/// The interface by which an address is a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub interface: u32,
    /// The interface's own.
    pub mac: [u8; 6],
}

impl NeighbourTable {
    /// To be called within a tokio runtime.
    pub async fn read() -> io::Result<NeighbourTable> {
        let net = Net::connect().await?;
        let mut entries = HashMap::new();
        for (address, interface, state, mac) in net.neighbours().await.map_err(into_io)? {
            entries.insert((address, interface), Entry { state: reduce(state), mac });
        }
        Ok(NeighbourTable { net, entries })
    }

    /// `None` when `address` is no neighbour: there is no route, or a router on it, or the link has no MAC addresses.
    pub async fn way(&self, address: IpAddr) -> Option<Way> {
        let found = self.net.lookup(address).await.ok()??;
        if found.gateway {
            return None;
        }
        let link = self.net.link(found.device.as_deref()?)?;
        let mac = link.address.as_slice().try_into().ok()?;
        link.resolves.then_some(Way { interface: link.index, mac })
    }

    pub fn entry(&self, address: IpAddr, interface: u32) -> Option<Entry> {
        self.entries.get(&(address, interface)).copied()
    }

    /// Has the kernel resolve an address. Its answer is in a later reading.
    pub async fn ask(&self, address: IpAddr, interface: u32) {
        if let Err(error) = self.net.use_neighbour(address, interface).await {
            tracing::debug!(%address, %error, "the kernel does not resolve a neighbour");
        }
    }

    /// Has the kernel ask a known neighbour whether it is still there.
    pub async fn probe(&self, address: IpAddr, interface: u32) {
        if let Err(error) = self.net.probe_neighbour(address, interface).await {
            tracing::debug!(%address, %error, "the kernel does not probe a neighbour");
        }
    }
}

impl Net {
    /// The neighbours of both families: address, interface, state, MAC address.
    async fn neighbours(&self) -> Result<Vec<(IpAddr, u32, NeighbourState, Option<[u8; 6]>)>, Error> {
        let mut found = Vec::new();
        for family in Family::BOTH {
            let request = self.handle.neighbours().get().set_address_family(address_family(family));
            let dump: Result<Vec<NeighbourMessage>, Error> = request.execute().try_collect().await;
            let entries = match dump {
                Err(error) if errno(&error) == Some(libc::EAFNOSUPPORT) => continue,
                other => other?,
            };
            for entry in entries {
                let address = entry.attributes.iter().find_map(neighbour_address);
                let mac = entry.attributes.iter().find_map(|attribute| match attribute {
                    NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
                    _ => None,
                });
                // A routing daemon's: as fixed as the operator's own.
                let learned = entry.header.flags.contains(NeighbourFlags::ExtLearned);
                let state = if learned { NeighbourState::Permanent } else { entry.header.state };
                found.extend(address.map(|address| (address, entry.header.ifindex, state, mac)));
            }
        }
        Ok(found)
    }

    /// Makes the kernel resolve a neighbour as if a packet went there.
    async fn use_neighbour(&self, address: IpAddr, interface: u32) -> Result<(), Error> {
        let mut request = self.handle.neighbours().add(interface, address).flags(NeighbourFlags::Use).replace();
        request.message_mut().header.state = NeighbourState::None;
        request.execute().await
    }

    /// Makes the kernel verify a neighbour that it knows.
    async fn probe_neighbour(&self, address: IpAddr, interface: u32) -> Result<(), Error> {
        self.handle.neighbours().add(interface, address).state(NeighbourState::Probe).replace().execute().await
    }
}

fn reduce(state: NeighbourState) -> State {
    match state {
        NeighbourState::Failed => State::Failed,
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => {
            State::Valid
        }
        NeighbourState::Permanent | NeighbourState::Noarp => State::Fixed,
        _ => State::Unknown,
    }
}
