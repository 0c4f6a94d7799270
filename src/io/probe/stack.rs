//! A TCP/IP stack with one socket: smoltcp's, over a probe's flow.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::AnySocket;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::{Probe, Side};
use crate::wire::{Protocol, Transport, View, icmp};

/// How long a stack with something to do at once waits all the same, so that it never spins.
const BREATH: Duration = Duration::from_millis(1);

pub(super) struct Stack {
    pub probe: Probe,
    pub interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    queue: Queue,
    timer: Pin<Box<tokio::time::Sleep>>,
    /// What an ICMP error said of a packet that was sent.
    pub told: Option<io::ErrorKind>,
}

impl Stack {
    /// To be called within a tokio runtime.
    pub fn new(probe: Probe, socket: impl AnySocket<'static>) -> Stack {
        let mut queue = Queue { arrived: VecDeque::new(), sent: Vec::new(), mtu: probe.mtu };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = probe.gateway.secret(probe.original);
        let mut interface = Interface::new(config, &mut queue, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            // Everybody is on the link, as far as the stack knows; there is room for more than one.
            let _ = list.push(IpCidr::new(probe.original.src.ip().into(), 0));
        });
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let socket = sockets.add(socket);
        let timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        Stack { probe, interface, sockets, socket, queue, timer, told: None }
    }

    pub fn socket<T: AnySocket<'static>>(&mut self) -> &mut T {
        self.sockets.get_mut(self.socket)
    }

    /// The socket, with what it needs to begin a connection.
    pub fn parts<T: AnySocket<'static>>(&mut self) -> (&mut T, &mut Interface) {
        (self.sockets.get_mut(self.socket), &mut self.interface)
    }

    /// Takes what has come, sends what there is to send, and has the caller woken when there may be more to do.
    pub fn progress(&mut self, side: Side, context: &mut Context<'_>) {
        let mut busy = false;
        loop {
            let came = self.probe.inbox.take(side, context.waker());
            busy |= !came.is_empty();
            for packet in came {
                match error_in(&packet) {
                    Some(Some(kind)) => self.told = Some(kind),
                    // Of no account for the socket, as are other ICMP messages.
                    Some(None) => {}
                    None => self.queue.arrived.push_back(packet),
                }
            }
            let now = self.now();
            self.interface.poll(now, &mut self.queue, &mut self.sockets);
            for packet in self.queue.sent.drain(..) {
                self.probe.send(&packet);
            }
            let Some(delay) = self.interface.poll_delay(now, &self.sockets) else { break };
            let delay = Duration::from_micros(delay.total_micros()).max(BREATH);
            self.timer.as_mut().reset(tokio::time::Instant::now() + delay);
            if self.timer.as_mut().poll(context).is_pending() {
                break;
            }
        }
        if busy {
            self.probe.inbox.wake_other(side);
        }
    }

    /// Sends what is left to send; nobody waits for what comes of it.
    pub fn finish(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.queue, &mut self.sockets);
        for packet in self.queue.sent.drain(..) {
            self.probe.send(&packet);
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.probe.gateway.now().micros() as i64)
    }
}

/// What an ICMP message says of a packet that was sent, as the kernel tells its sockets; the inner `None`: nothing that ends
/// an exchange. The outer one: it is no ICMP message.
fn error_in(packet: &[u8]) -> Option<Option<io::ErrorKind>> {
    let view = View::parse(packet).ok()?;
    let Transport::Icmp(kind) = view.transport else { return None };
    let (message, code) = (packet.get(view.l4)?, packet.get(view.l4 + 1)?);
    let is_error = kind == icmp::Kind::Error;
    Some(match (view.protocol, *message) {
        _ if !is_error => None,
        // Codes: 0 net, 1 host, 2 protocol, 3 port, 4 too big, 5 source route, 6 to 15 unknown or forbidden (RFC 1122
        // section 3.2.2.1, RFC 1812 section 5.2.7.1).
        (Protocol::ICMP, icmp::V4_UNREACHABLE) => match *code {
            0 | 6 => Some(io::ErrorKind::NetworkUnreachable),
            2 | icmp::V4_PORT_UNREACHABLE => Some(io::ErrorKind::ConnectionRefused),
            icmp::V4_FRAGMENTATION_NEEDED => None,
            _ => Some(io::ErrorKind::HostUnreachable),
        },
        (Protocol::ICMPV6, icmp::V6_UNREACHABLE) => match *code {
            0 => Some(io::ErrorKind::NetworkUnreachable),
            icmp::V6_PORT_UNREACHABLE => Some(io::ErrorKind::ConnectionRefused),
            _ => Some(io::ErrorKind::HostUnreachable),
        },
        _ => None,
    })
}

/// The stack's end of the flow.
struct Queue {
    arrived: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    mtu: usize,
}

struct Arrived(Vec<u8>);
struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Queue {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Sent<'_>)> {
        Some((Arrived(self.arrived.pop_front()?), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // The kernel hands over packets whose checksum is still to be completed, and super-packets; it has verified the others.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}
