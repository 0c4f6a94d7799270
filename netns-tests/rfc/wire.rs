//! A link on which a test plays hosts: it sends packets as they are, and sees all that go by.
//!
//! The hosts have addresses and a MAC address that the lab's nodes have not: their kernels take nothing of it for themselves.

use std::cell::RefCell;
use std::fmt;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::process;
use crate::support::oracle::{self, Decoded};

/// How long a packet may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it takes at most on an idle one, after a later packet has been seen.
const GRACE: Duration = Duration::from_millis(40);

const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;

pub struct Wire {
    socket: Socket,
    interface: u32,
    gateway: [u8; 6],
    seen: RefCell<Vec<Seen>>,
}

impl Wire {
    /// On the interface `eth0` of a namespace; `gateway` is the MAC address that packets go to.
    pub fn open(netns: &str, gateway: [u8; 6]) -> Result<Wire> {
        let (socket, interface) = process::inside(netns, || -> Result<(Socket, u32)> {
            // Protocol 0 receives nothing until the socket is bound to its interface.
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
            // SAFETY: the name ends with a NUL.
            let interface = unsafe { libc::if_nametoindex(c"eth0".as_ptr()) };
            ensure!(interface != 0, "no eth0");
            Ok((socket, interface))
        })??;
        // What we send ourselves is not what goes by.
        let yes: libc::c_int = 1;
        // SAFETY: the pointer and the length are those of `yes`.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_IGNORE_OUTGOING,
                (&raw const yes).cast(),
                size_of_val(&yes) as libc::socklen_t,
            )
        };
        ensure!(result == 0, "PACKET_IGNORE_OUTGOING: {}", std::io::Error::last_os_error());
        socket.set_recv_buffer_size(8 << 20)?;
        socket.bind(&link_address(interface, ETH_P_ALL, [0; 6]))?;
        Ok(Wire { socket, interface, gateway, seen: RefCell::default() })
    }

    /// Sends packets to the gateway, whatever they are.
    pub fn send(&self, packet: impl AsRef<[u8]>) -> Result<()> {
        let packet = packet.as_ref();
        let protocol = if packet[0] >> 4 == 4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
        let to = link_address(self.interface, protocol as u16, self.gateway);
        self.socket.send_to(packet, &to).with_context(|| format!("{} bytes", packet.len()))?;
        Ok(())
    }

    /// Waits for a packet of which this holds, and takes it.
    pub fn expect(&self, what: &str, is: impl Fn(&Seen) -> bool) -> Result<Seen> {
        self.expect_within(PATIENCE, what, is)
    }

    /// The same, waiting as long as this.
    pub fn expect_within(&self, limit: Duration, what: &str, is: impl Fn(&Seen) -> bool) -> Result<Seen> {
        let deadline = Instant::now() + limit;
        let mut checked = 0;
        loop {
            let mut seen = self.seen.borrow_mut();
            if let Some(at) = seen[checked..].iter().position(&is) {
                return Ok(seen.remove(checked + at));
            }
            checked = seen.len();
            drop(seen);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.receive(left)? {
                bail!("{what}: no such packet; what came: {:#?}", self.seen.borrow());
            }
        }
    }

    /// No packet came, and comes while one that is sent now would, of which this holds.
    pub fn refute(&self, what: &str, is: impl Fn(&Seen) -> bool) -> Result<()> {
        let deadline = Instant::now() + GRACE;
        while self.receive(deadline.saturating_duration_since(Instant::now()))? {}
        match self.seen.borrow().iter().find(|seen| is(seen)) {
            Some(seen) => bail!("{what}: {seen:?}"),
            None => Ok(()),
        }
    }

    /// Takes all packets of which this holds that have come.
    pub fn take_all(&self, is: impl Fn(&Seen) -> bool) -> Result<Vec<Seen>> {
        while self.receive(Duration::ZERO)? {}
        let (taken, left) = self.seen.take().into_iter().partition(|seen| is(seen));
        *self.seen.borrow_mut() = left;
        Ok(taken)
    }

    /// Takes one packet from the socket. False when none has come in this time.
    fn receive(&self, limit: Duration) -> Result<bool> {
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = limit.as_micros().div_ceil(1000).try_into()?;
        // SAFETY: one pollfd, as the count says.
        if unsafe { libc::poll(&raw mut poll, 1, milliseconds) } <= 0 {
            return Ok(false);
        }
        let mut buffer = [MaybeUninit::<u8>::uninit(); 65536];
        let length = self.socket.recv(&mut buffer)?;
        // SAFETY: the kernel has written this many bytes.
        let packet = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
        if let Some(decoded) = oracle::decode(packet) {
            self.seen.borrow_mut().push(Seen { bytes: packet[..decoded.len].to_vec(), decoded });
        }
        Ok(true)
    }
}

fn link_address(interface: u32, protocol: u16, mac: [u8; 6]) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the address is written as a whole, in the type that its family means.
    unsafe {
        let link = storage.view_as::<libc::sockaddr_ll>();
        link.sll_family = libc::AF_PACKET as u16;
        link.sll_protocol = protocol.to_be();
        link.sll_ifindex = interface as i32;
        link.sll_halen = 6;
        link.sll_addr[..6].copy_from_slice(&mac);
        SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    }
}

/// A packet that went by.
#[derive(Clone)]
pub struct Seen {
    pub bytes: Vec<u8>,
    pub decoded: Decoded,
}

impl Seen {
    /// Where it comes from; of an ICMP query, the port is its identifier.
    pub fn from(&self) -> SocketAddr {
        (self.decoded.src, self.ports().0).into()
    }

    pub fn to(&self) -> SocketAddr {
        (self.decoded.dst, self.ports().1).into()
    }

    fn ports(&self) -> (u16, u16) {
        match self.icmp() {
            Some(icmp) if !icmp.is_error() => (icmp.id(), icmp.id()),
            _ => self.decoded.ports.unwrap_or_default(),
        }
    }

    pub fn payload(&self) -> &[u8] {
        &self.decoded.payload
    }

    /// TCP's flags, as [`crate::support::packet`] has them.
    pub fn flags(&self) -> Option<u8> {
        self.decoded.tcp.as_ref().map(|tcp| tcp.flags)
    }

    pub fn icmp(&self) -> Option<Icmp> {
        let later = self.decoded.fragment.is_some_and(|(_, offset, _)| offset != 0);
        if !matches!(self.decoded.protocol, 1 | 58) || later {
            return None;
        }
        let header = self.bytes.get(self.decoded.l4..self.decoded.l4 + 8)?;
        let word = [header[4], header[5], header[6], header[7]];
        Some(Icmp { v4: self.decoded.protocol == 1, kind: header[0], code: header[1], word })
    }

    /// The packet that an ICMP error quotes.
    pub fn quoted(&self) -> Option<Quoted> {
        self.icmp().filter(Icmp::is_error).and_then(|_| Quoted::read(&self.decoded.payload))
    }

    pub fn checksums_are_right(&self) -> bool {
        oracle::checksums_are_right(&self.bytes)
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} protocol {}", self.from(), self.to(), self.decoded.protocol)?;
        if let Some(icmp) = self.icmp() {
            write!(f, " {icmp:?}")?;
        }
        if let Some(quoted) = self.quoted() {
            write!(f, " about {} > {}", quoted.from, quoted.to)?;
        }
        if let Some(flags) = self.flags() {
            write!(f, " flags {flags:#x}")?;
        }
        if let Some((id, offset, more)) = self.decoded.fragment {
            write!(f, " fragment {id:#x} at {offset} more {more}")?;
        }
        write!(f, " length {}", self.bytes.len())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    pub v4: bool,
    pub kind: u8,
    pub code: u8,
    /// The second word of the header.
    pub word: [u8; 4],
}

impl Icmp {
    pub fn is_error(&self) -> bool {
        if self.v4 { matches!(self.kind, 3 | 4 | 5 | 11 | 12) } else { self.kind < 128 }
    }

    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.word[0], self.word[1]])
    }

    /// The MTU that a "too big" tells.
    pub fn mtu(&self) -> Option<u16> {
        let too_big = if self.v4 { (self.kind, self.code) == (3, 4) } else { self.kind == 2 };
        too_big.then(|| u16::from_be_bytes([self.word[2], self.word[3]]))
    }
}

/// The beginning of a packet: what of it an ICMP error quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quoted {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub protocol: u8,
    pub header_is_right: bool,
    /// From the transport header on.
    pub transport: Vec<u8>,
}

impl Quoted {
    fn read(packet: &[u8]) -> Option<Quoted> {
        let v4 = packet.first()? >> 4 == 4;
        let header = if v4 { usize::from(packet[0] & 15) * 4 } else { 40 };
        let ip = packet.get(..header)?;
        let (src, dst, protocol): (IpAddr, IpAddr, u8) = if v4 {
            let word = |at: usize| <[u8; 4]>::try_from(&ip[at..at + 4]).ok();
            (word(12)?.into(), word(16)?.into(), ip[9])
        } else {
            let word = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).ok();
            (word(8)?.into(), word(24)?.into(), ip[6])
        };
        let transport = packet[header..].to_vec();
        let port = |at: usize| Some(u16::from_be_bytes([*transport.get(at)?, *transport.get(at + 1)?]));
        let ports = match protocol {
            1 | 58 => (port(4)?, port(4)?),
            _ => (port(0)?, port(2)?),
        };
        Some(Quoted {
            from: (src, ports.0).into(),
            to: (dst, ports.1).into(),
            protocol,
            header_is_right: !v4 || oracle::sum(ip) == 0xffff,
            transport,
        })
    }
}
