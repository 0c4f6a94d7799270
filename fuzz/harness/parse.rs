//! Any bytes as a packet: parsing never panics, every offset lies in the packet, and etherparse sees the same.

use gatun::wire::{Addr, Transport, View};

use super::oracle;

pub fn run(bytes: &[u8]) {
    if let Ok((view, tuple)) = View::parse_quoted(bytes) {
        assert!(view.l4 <= bytes.len());
        assert!(tuple.is_none() || view.l4 + 4 <= bytes.len());
    }
    let Ok(view) = View::parse(bytes) else { return };
    assert!(view.l4 <= view.len && view.len <= bytes.len());
    match view.transport {
        Transport::Tcp(header) => assert!(view.l4 + header.header_len <= view.len),
        Transport::Udp(_) | Transport::Icmp(_) => assert!(view.l4 + 8 <= view.len),
        Transport::Later => assert!(view.fragment.is_some_and(|fragment| fragment.offset > 0)),
        Transport::Other => {}
    }
    // etherparse is stricter about the order of extension headers; where it does read the packet, both must agree.
    let Some(told) = oracle::decode(bytes) else { return };
    if view.l4 != told.l4 {
        // It stops at extension headers that it does not know (mobility), and walks IPv4's authentication header.
        return;
    }
    assert_eq!((view.src, view.dst), (Addr::from(told.src), Addr::from(told.dst)));
    assert_eq!((view.protocol.0, view.ttl, view.len), (told.protocol, told.ttl, told.len));
    assert_eq!(view.fragment.map(|f| (f.id, f.offset, f.more)), told.fragment);
    assert!(view.fragment.is_none_or(|f| usize::from(f.len) >= view.len - view.l4));
    assert!(view.fragment.is_none_or(|f| u32::from(f.offset) + u32::from(f.len) <= 65_535));
    if let Transport::Tcp(_) | Transport::Udp(_) = view.transport {
        assert_eq!(view.ports().map(|tuple| (tuple.sport, tuple.dport)), told.ports);
    }
}
