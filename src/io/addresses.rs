//! The host's own addresses.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;

use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt};
use netlink_packet_route::address::AddressAttribute;
use rtnetlink::MulticastGroup;
use tokio::task::JoinHandle;

/// Every address of every interface of this network namespace, with the interface's index. To be called within a tokio
/// runtime.
pub async fn addresses_of_links() -> io::Result<Vec<(u32, IpAddr)>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut messages = handle.address().get().execute();
    let mut addresses = Vec::new();
    while let Some(message) = messages.try_next().await.map_err(io::Error::other)? {
        // On a point-to-point link IFA_ADDRESS is the other end, and IFA_LOCAL this one; IPv6 links without a peer have
        // no IFA_LOCAL.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let either = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        addresses.extend(local.or(either).map(|address| (message.header.index, address)));
    }
    connection.abort();
    Ok(addresses)
}

/// Tells when an address comes to this network namespace or goes. To be used within one tokio runtime.
pub struct AddressWatch {
    connection: JoinHandle<()>,
    messages: Pin<Box<dyn Stream<Item = ()> + Send>>,
}

impl AddressWatch {
    pub fn open() -> io::Result<AddressWatch> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        Ok(AddressWatch { connection: tokio::spawn(connection), messages: Box::pin(messages.map(|_| ())) })
    }

    /// Returns when there was a change since the last call; what came together counts once. Never, once the kernel tells no
    /// more.
    pub async fn changed(&mut self) {
        if self.messages.next().await.is_none() {
            return std::future::pending().await;
        }
        while let Some(Some(())) = self.messages.next().now_or_never() {}
    }
}

impl Drop for AddressWatch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_loopback_address_is_local_and_a_documentation_address_is_not() {
        let addresses: Vec<IpAddr> = addresses_of_links().await.unwrap().into_iter().map(|(_, ip)| ip).collect();
        assert!(addresses.contains(&"127.0.0.1".parse().unwrap()), "{addresses:?}");
        assert!(!addresses.contains(&"203.0.113.10".parse().unwrap()), "{addresses:?}");
    }
}
