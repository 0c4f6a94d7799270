//! Where answers wait for their probes.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;

use crate::wire::{PacketBuf, Transport, Tuple, View, icmp};

/// What waits for one probe at most. A socket's window is far smaller, so only who ignores that gets there.
const MAX_PACKETS: usize = 64;
const MAX_BYTES: usize = 128 << 10;

/// The inboxes of all probes, by the original tuples of their flows.
#[derive(Default)]
pub(in crate::io) struct Inboxes(Mutex<HashMap<Tuple, Arc<Inbox>>>);

impl Inboxes {
    pub fn open(&self, original: Tuple) -> Arc<Inbox> {
        self.0.lock().entry(original).or_default().clone()
    }

    pub fn close(&self, original: &Tuple) {
        self.0.lock().remove(original);
    }

    /// Puts a packet into the inbox of the probe that it is for; `false`: it is lost.
    pub fn deliver(&self, buf: &PacketBuf) -> bool {
        let Some(original) = probe_of(buf) else { return false };
        let inbox = self.0.lock().get(&original).cloned();
        inbox.is_some_and(|inbox| inbox.put(buf.packet()))
    }
}

/// The original tuple of the flow that an answer, or an error about a packet of it, belongs to.
fn probe_of(buf: &PacketBuf) -> Option<Tuple> {
    let view = View::parse(buf.packet()).ok()?;
    match view.transport {
        Transport::Icmp(icmp::Kind::Error) => View::parse_quoted(buf.packet().get(view.l4 + icmp::LEN..)?).ok()?.1,
        _ => view.ports().map(Tuple::reversed),
    }
}

/// Who polls a probe: the same task or two.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Read,
    Write,
}

#[derive(Default)]
pub(in crate::io) struct Inbox(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    packets: Vec<Vec<u8>>,
    bytes: usize,
    wakers: [Option<Waker>; 2],
}

impl Inbox {
    fn put(&self, packet: &[u8]) -> bool {
        let mut waiting = self.0.lock();
        if waiting.packets.len() == MAX_PACKETS || waiting.bytes + packet.len() > MAX_BYTES {
            return false;
        }
        waiting.bytes += packet.len();
        waiting.packets.push(packet.to_vec());
        let wakers = waiting.wakers.each_mut().map(Option::take);
        drop(waiting);
        wakers.into_iter().flatten().for_each(Waker::wake);
        true
    }

    /// What has come. `waker` is woken when more comes.
    pub(super) fn take(&self, side: Side, waker: &Waker) -> Vec<Vec<u8>> {
        let mut waiting = self.0.lock();
        waiting.wakers[side as usize] = Some(waker.clone());
        waiting.bytes = 0;
        std::mem::take(&mut waiting.packets)
    }

    /// Wakes whoever waits on the other side: what was done on this one may concern it.
    pub(super) fn wake_other(&self, side: Side) {
        let other = match side {
            Side::Read => Side::Write,
            Side::Write => Side::Read,
        };
        let waker = self.0.lock().wakers[other as usize].take();
        waker.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Addr, Protocol};

    /// A UDP datagram of the least kind, from 203.0.113.10:53 to 10.20.0.1:61000.
    fn answer(payload: usize) -> PacketBuf {
        let (src, dst) = (Addr::from_v4([203, 0, 113, 10]), Addr::from_v4([10, 20, 0, 1]));
        let mut packet = [0u8; 20];
        crate::wire::ipv4::emit(&mut packet, src, dst, Protocol::UDP, 0, 8 + payload);
        let len = (8 + payload) as u16;
        let header = [53u16.to_be_bytes(), 61000u16.to_be_bytes(), len.to_be_bytes(), [0; 2]].concat();
        PacketBuf::from_packet(&[&packet[..], &header, &vec![0; payload]].concat())
    }

    #[test]
    fn an_inbox_holds_so_much_and_no_more() {
        let inboxes = Inboxes::default();
        assert!(!inboxes.deliver(&answer(4)), "nobody asked");
        let original = probe_of(&answer(4)).unwrap();
        assert_eq!((original.sport, original.dport), (61000, 53));
        let inbox = inboxes.open(original);
        let fill = |size: usize| (0..10_000).take_while(|_| inboxes.deliver(&answer(size))).count();
        assert_eq!(fill(4), MAX_PACKETS);
        assert_eq!(inbox.take(Side::Read, Waker::noop()).len(), MAX_PACKETS);
        assert_eq!(fill(60_000), MAX_BYTES / 60_028);
        inbox.take(Side::Read, Waker::noop());
        assert!(inboxes.deliver(&answer(4)));
        inboxes.close(&original);
        assert!(!inboxes.deliver(&answer(4)), "the probe is over");
    }
}
