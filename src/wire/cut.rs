//! Packets that do not leave in one piece: super-packets, since a virtio header cannot speak of a super-packet in a tunnel,
//! and packets that are larger than their path carries.
//!
//! What RFC 4459 section 3 leaves open is decided so: a packet that may not be fragmented is not sent, and its sender is
//! told (section 3.2). IPv4 without DF is fragmented before it is wrapped (section 3.4): the server puts it together, not
//! the tunnel's end. An IPv6 packet of at most 1280 bytes can be told nothing smaller (RFC 2473 section 7.1, RFC 4213
//! section 3.2.2): it is wrapped first, and the tunnelled packet is fragmented (section 3.1).
//!
//! Of a piece only headers are made anew. The payload stays where it is, and is summed in three cases only: a fragment's
//! checksum covers all fragments, so it is completed before; a super-packet's complete checksum is verified, since nobody
//! could tell afterwards that it was wrong; and a fragmented datagram of GUE over IPv6 needs one.

use super::checksum;
use super::outer::{Inner, MAX_OVERHEAD, Partial, add, complete};
use super::{Outer, PacketBuf, Protocol, Transport, View, VnetHdr, Wrap, ipv4, ipv6, tcp, udp};
use crate::verdict::DropReason;

/// What has to happen to a packet on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It goes as it is, in one write (without a tunnel, also a super-packet).
    Whole,
    /// [`pieces`] makes several packets of it.
    Pieces,
    /// It cannot go; its sender is to be told to send packets of at most `mtu` bytes.
    TooBig { mtu: u16 },
}

/// Whether a packet fits a path of `mtu` bytes. `df` is IPv4's, see [`ipv4::dont_fragment`]; it does not matter for IPv6.
/// `overhead` is that of [`Outer::overhead`], or 0 without a tunnel: then `outer_is_v4` does not matter.
pub fn fit(view: &View, vnet: &VnetHdr, df: bool, overhead: usize, outer_is_v4: bool, mtu: u16) -> Fit {
    let v4 = view.src.is_v4();
    let mtu = path_mtu(mtu, if overhead == 0 { v4 } else { outer_is_v4 });
    let room = mtu - overhead.min(mtu);
    let gso = vnet.is_gso();
    let largest = match segment_headers(view) {
        Some(headers) if gso => view.len.min(headers + usize::from(vnet.gso_size)),
        _ => view.len,
    };
    if largest <= room {
        return if gso && overhead > 0 { Fit::Pieces } else { Fit::Whole };
    }
    let told = |least: u16| Fit::TooBig { mtu: (room as u16).max(least) };
    match v4 {
        true if df => told(ipv4::MIN_MTU),
        true => Fit::Pieces,
        false if overhead > 0 && largest <= usize::from(ipv6::MIN_MTU) => Fit::Pieces,
        false => told(ipv6::MIN_MTU),
    }
}

/// Why [`pieces`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutError<E> {
    /// The packet cannot be cut; if it is found out at the first piece, nothing was handed on.
    Packet(DropReason),
    /// What the caller said of a piece.
    Each(E),
}

/// Cuts the packet of `buf` and wraps each piece. Calls `each` for every piece in order with the virtio header, the headers
/// of the piece, and the payload that follows them, a slice of the packet. Returns how many there were.
///
/// # Errors
/// The first one of `each`; or the packet is malformed, contradicts its virtio header, or cannot be made to fit.
pub fn pieces<E>(
    buf: &PacketBuf,
    wrap: &Wrap,
    each: impl FnMut(&VnetHdr, &[u8], &[u8]) -> Result<(), E>,
) -> Result<usize, CutError<E>> {
    cut(buf, Some(&wrap.outer), wrap.mtu, each)
}

/// As [`pieces`]; without `outer` the pieces are not wrapped.
///
/// # Errors
/// As [`pieces`].
pub fn cut<E>(
    buf: &PacketBuf,
    outer: Option<&Outer>,
    mtu: u16,
    mut each: impl FnMut(&VnetHdr, &[u8], &[u8]) -> Result<(), E>,
) -> Result<usize, CutError<E>> {
    let packet = buf.packet();
    let view = View::parse(packet).map_err(CutError::Packet)?;
    let packet = &packet[..view.len];
    let mut way = Way {
        outer,
        mtu: path_mtu(mtu, outer.map_or(view.src.is_v4(), |outer| outer.dst.is_v4())),
        inner: Inner::of(packet),
        count: 0,
        each: &mut each,
    };
    if buf.vnet.is_gso() {
        let super_packet = SuperPacket::new(packet, &view, &buf.vnet).map_err(CutError::Packet)?;
        for number in 0..super_packet.segments() {
            way.send(&super_packet.segment(number))?;
        }
    } else {
        way.send(&Segment::whole(packet, &view, &buf.vnet).map_err(CutError::Packet)?)?;
    }
    Ok(way.count)
}

/// No path of IPv6 is narrower (RFC 8200 section 5, RFC 8201 section 4).
fn path_mtu(mtu: u16, v4: bool) -> usize {
    usize::from(if v4 { mtu.max(ipv4::MIN_MTU) } else { mtu.max(ipv6::MIN_MTU) })
}

/// Bytes that each segment of a super-packet repeats.
fn segment_headers(view: &View) -> Option<usize> {
    match view.transport {
        Transport::Tcp(header) => Some(view.l4 + header.header_len),
        Transport::Udp(_) => Some(view.l4 + udp::LEN),
        _ => None,
    }
}

/// Room for the headers of a piece that are made anew. More than IPv6 and TCP with a few extension headers take.
const MAX_HEAD: usize = 256;

/// A packet as it leaves, before it is fragmented or wrapped: headers of its own, and payload that lies elsewhere.
struct Segment<'a> {
    head: [u8; MAX_HEAD],
    head_len: usize,
    body: &'a [u8],
    partial: Option<Partial>,
}

impl<'a> Segment<'a> {
    fn new(head: &[u8], body: &'a [u8], partial: Option<Partial>) -> Result<Segment<'a>, DropReason> {
        let mut segment = Segment { head: [0; MAX_HEAD], head_len: head.len(), body, partial };
        let room = segment.head.get_mut(..head.len()).ok_or(DropReason::TooManyExtensionHeaders)?;
        room.copy_from_slice(head);
        Ok(segment)
    }

    /// The packet as it is. What may have to be changed in it is IPv4's header, and a checksum that is not complete.
    fn whole(packet: &'a [u8], view: &View, vnet: &VnetHdr) -> Result<Segment<'a>, DropReason> {
        let partial = Partial::of(vnet, view.l4, packet.len())?;
        let ip_len = if view.src.is_v4() { view.l4 } else { ipv6::LEN };
        let (head, body) = packet.split_at(partial.map_or(ip_len, |partial| ip_len.max(partial.field() + 2)));
        Segment::new(head, body, partial)
    }

    fn head(&self) -> &[u8] {
        &self.head[..self.head_len]
    }

    fn len(&self) -> usize {
        self.head_len + self.body.len()
    }

    /// The same with its checksum complete.
    fn completed(&self) -> Segment<'a> {
        let Segment { mut head, head_len, body, partial } = *self;
        if let Some(partial) = partial {
            let sum = add(checksum::sum(&head[partial.start..head_len]), checksum::sum(body));
            head[partial.field()..partial.field() + 2].copy_from_slice(&complete(sum).to_be_bytes());
        }
        Segment { head, head_len, body, partial: None }
    }
}

/// A packet that the kernel has left for us to cut into segments.
struct SuperPacket<'a> {
    first: Segment<'a>,
    payload: &'a [u8],
    size: usize,
    l4: usize,
    v4: bool,
    /// `None`: UDP.
    tcp: Option<tcp::Header>,
    /// The sum of the pseudo header without the length.
    pseudo: u16,
}

impl<'a> SuperPacket<'a> {
    fn new(packet: &'a [u8], view: &View, vnet: &VnetHdr) -> Result<SuperPacket<'a>, DropReason> {
        let v4 = view.src.is_v4();
        let (tcp, offset) = match (vnet.gso(), view.transport) {
            (VnetHdr::GSO_TCPV4, Transport::Tcp(header)) if v4 => (Some(header), tcp::CHECKSUM),
            (VnetHdr::GSO_TCPV6, Transport::Tcp(header)) if !v4 => (Some(header), tcp::CHECKSUM),
            (VnetHdr::GSO_UDP_L4, Transport::Udp(_)) => (None, udp::CHECKSUM),
            _ => return Err(DropReason::BadOffload),
        };
        let header_len = segment_headers(view).ok_or(DropReason::BadOffload)?;
        let size = usize::from(vnet.gso_size);
        if size == 0 || view.fragment.is_some() {
            return Err(DropReason::BadOffload);
        }
        let (head, payload) = packet.split_at(header_len);
        let here = Partial { start: view.l4, offset };
        let pseudo = checksum::pseudo_header(view.src, view.dst, view.protocol.0, 0);
        let partial = match Partial::of(vnet, view.l4, packet.len())? {
            Some(told) if told == here => Some(here),
            Some(_) => return Err(DropReason::BadOffload),
            // A datagram without a checksum.
            None if view.protocol == Protocol::UDP && head[here.field()..] == [0, 0] => None,
            None => {
                let segment = &packet[view.l4..];
                match add(add(pseudo, segment.len() as u16), checksum::sum(segment)) {
                    0xffff => Some(here),
                    _ => return Err(DropReason::BadOffload),
                }
            }
        };
        let first = Segment::new(head, &[], partial)?;
        Ok(SuperPacket { first, payload, size, l4: view.l4, v4, tcp, pseudo })
    }

    /// At least one, if only of headers.
    fn segments(&self) -> usize {
        self.payload.len().div_ceil(self.size).max(1)
    }

    /// The segment of that number, from 0. Its checksum is partial, so that nobody here sums the payload.
    fn segment(&self, number: usize) -> Segment<'a> {
        let from = number * self.size;
        let to = self.payload.len().min(from + self.size);
        let last = to == self.payload.len();
        let Segment { mut head, head_len, partial, .. } = self.first;
        let body = &self.payload[from..to];
        let len = head_len + body.len();
        let (ip, l4) = head[..head_len].split_at_mut(self.l4);
        if self.v4 {
            let id = u16::from_be_bytes([ip[ipv4::ID], ip[ipv4::ID + 1]]).wrapping_add(number as u16);
            put(ip, ipv4::TOTAL_LEN, len as u16);
            put(ip, ipv4::ID, id);
            ipv4::write_checksum(ip);
        } else {
            put(ip, ipv6::PAYLOAD_LEN, (len - ipv6::LEN) as u16);
        }
        let l4_len = len - self.l4;
        match &self.tcp {
            Some(header) => {
                l4[tcp::SEQ..tcp::ACK_NUMBER].copy_from_slice(&header.seq.wrapping_add(from as u32).to_be_bytes());
                // What ends the data goes with its last bytes; that the window was reduced is said once (RFC 3168 6.1.2).
                l4[tcp::FLAGS] &=
                    !(if last { 0 } else { tcp::FIN | tcp::PSH } | if number == 0 { 0 } else { tcp::CWR });
            }
            None => put(l4, udp::LENGTH, l4_len as u16),
        }
        if let Some(partial) = partial {
            put(l4, partial.offset, add(self.pseudo, l4_len as u16));
        }
        Segment { head, head_len, body, partial }
    }
}

fn put(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

/// Where segments go: through the outer headers, in packets of at most `mtu` bytes, to the caller.
struct Way<'a, F> {
    outer: Option<&'a Outer>,
    mtu: usize,
    inner: Inner,
    /// Packets that have left.
    count: usize,
    each: &'a mut F,
}

impl<F, E> Way<'_, F>
where
    F: FnMut(&VnetHdr, &[u8], &[u8]) -> Result<(), E>,
{
    fn send(&mut self, segment: &Segment<'_>) -> Result<(), CutError<E>> {
        let overhead = self.outer.map_or(0, Outer::overhead);
        if segment.len() + overhead <= self.mtu {
            return self.wrapped(segment.head(), segment.body, segment.partial);
        }
        match (self.inner, self.outer) {
            (Inner { v4: true, df: false, .. }, _) => self.inner_fragments(&segment.completed(), overhead),
            (Inner { v4: false, .. }, Some(outer)) if segment.len() <= usize::from(ipv6::MIN_MTU) => {
                self.outer_fragments(&segment.completed(), outer)
            }
            _ => Err(CutError::Packet(DropReason::TooBig)),
        }
    }

    /// Sends what is small enough now.
    fn wrapped(&mut self, head: &[u8], body: &[u8], partial: Option<Partial>) -> Result<(), CutError<E>> {
        let mut room = [0; MAX_OVERHEAD];
        let Some(outer) = self.outer else {
            let vnet = partial.map_or_else(VnetHdr::default, |partial| partial.vnet(0));
            return self.hand_on(&vnet, &[head], body);
        };
        let len = head.len() + body.len();
        let (headers, vnet) =
            outer.headers(&mut room, &self.inner, len, self.id(outer), partial, head).map_err(CutError::Packet)?;
        self.hand_on(&vnet, &[headers, head], body)
    }

    /// Fragments of an IPv4 packet (RFC 791 section 3.2), which may be a fragment itself.
    fn inner_fragments(&mut self, segment: &Segment<'_>, overhead: usize) -> Result<(), CutError<E>> {
        let ip_len = usize::from(segment.head[0] & 0x0f) * 4;
        let (ip, rest) = segment.head().split_at(ip_len);
        let field = u16::from_be_bytes([ip[ipv4::FRAGMENT], ip[ipv4::FRAGMENT + 1]]);
        let payload = Split { head: rest, body: segment.body };
        let mut from = 0;
        while from < payload.len() {
            let mut header = [0; ipv4::MAX_LEN];
            let header = ipv4_fragment_header(&mut header, ip, from == 0);
            let size = self.fragment_size(header.len() + overhead)?;
            let to = payload.len().min(from + size);
            let more = if to < payload.len() { ipv4::MF } else { field & ipv4::MF };
            put(header, ipv4::TOTAL_LEN, (header.len() + to - from) as u16);
            put(header, ipv4::FRAGMENT, ((field & ipv4::OFFSET) + (from / 8) as u16) | more);
            ipv4::write_checksum(header);
            let (head, body) = payload.range(from, to);
            let mut room = [0; MAX_HEAD];
            self.wrapped(join(&mut room, &[header, head]), body, None)?;
            from = to;
        }
        Ok(())
    }

    /// Fragments of the tunnelled packet.
    fn outer_fragments(&mut self, segment: &Segment<'_>, outer: &Outer) -> Result<(), CutError<E>> {
        let mut room = [0; MAX_OVERHEAD];
        let (inner, id) = (self.inner, self.id(outer));
        let shim = outer.shim(&mut room, &inner, (segment.head(), segment.body));
        let mut both = [0; MAX_OVERHEAD + MAX_HEAD];
        let payload = Split { head: join(&mut both, &[shim, segment.head()]), body: segment.body };
        let size = self.fragment_size(outer.fragment_overhead())?;
        let mut from = 0;
        while from < payload.len() {
            let to = payload.len().min(from + size);
            let (head, body) = payload.range(from, to);
            let mut room = [0; MAX_OVERHEAD];
            let more = to < payload.len();
            let ip =
                outer.fragment_headers(&mut room, &inner, id, (from, to - from), more).map_err(CutError::Packet)?;
            self.hand_on(&VnetHdr::default(), &[ip, head], body)?;
            from = to;
        }
        Ok(())
    }

    /// Payload bytes of a fragment that is not the last one.
    fn fragment_size(&self, headers: usize) -> Result<usize, CutError<E>> {
        match self.mtu.saturating_sub(headers) & !7 {
            0 => Err(CutError::Packet(DropReason::TooBig)),
            size => Ok(size),
        }
    }

    fn id(&self, outer: &Outer) -> u16 {
        outer.id.wrapping_add(self.count as u16)
    }

    fn hand_on(&mut self, vnet: &VnetHdr, headers: &[&[u8]], body: &[u8]) -> Result<(), CutError<E>> {
        let mut room = [0; MAX_OVERHEAD + MAX_OVERHEAD + MAX_HEAD];
        (self.each)(vnet, join(&mut room, headers), body).map_err(CutError::Each)?;
        self.count += 1;
        Ok(())
    }
}

/// Bytes that lie in two places.
struct Split<'a> {
    head: &'a [u8],
    body: &'a [u8],
}

impl<'a> Split<'a> {
    fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// What lies between two places, again in two parts.
    fn range(&self, from: usize, to: usize) -> (&'a [u8], &'a [u8]) {
        let (head, in_body) = (self.head, |at: usize| at.saturating_sub(self.head.len()));
        (&head[from.min(head.len())..to.min(head.len())], &self.body[in_body(from)..in_body(to)])
    }
}

fn join<'a>(room: &'a mut [u8], parts: &[&[u8]]) -> &'a [u8] {
    let mut at = 0;
    for part in parts {
        room[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    &room[..at]
}

/// The header of a fragment: of the options, later ones have only those with the copied flag (RFC 791 section 3.1).
fn ipv4_fragment_header<'a>(room: &'a mut [u8; ipv4::MAX_LEN], header: &[u8], first: bool) -> &'a mut [u8] {
    if first {
        let room = &mut room[..header.len()];
        room.copy_from_slice(header);
        return room;
    }
    room[..ipv4::MIN_LEN].copy_from_slice(&header[..ipv4::MIN_LEN]);
    let (mut at, mut len) = (ipv4::MIN_LEN, ipv4::MIN_LEN);
    while at < header.len() {
        let option = match (header[at], header.get(at + 1)) {
            (ipv4::OPTION_END, _) => break,
            (ipv4::OPTION_NOP, _) => 1,
            (_, Some(&option)) if option >= 2 => usize::from(option),
            // It has no end; nor has anything behind it.
            _ => break,
        };
        let Some(bytes) = header.get(at..at + option) else { break };
        if bytes[0] & ipv4::OPTION_COPIED != 0 {
            room[len..len + option].copy_from_slice(bytes);
            len += option;
        }
        at += option;
    }
    // What is left of the last word is zero, the end of the options.
    let len = len.next_multiple_of(4);
    room[0] = 0x40 | (len / 4) as u8;
    &mut room[..len]
}
