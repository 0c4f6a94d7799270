//! The engine's part in the SYN proxy: a client's SYN is answered by a cookie ([`crate::forward::cookie`]), and a server hears of
//! the connection only once the client has shown that it is there (RFC 4987 section 3.6).
//!
//! # Theory of operation
//!
//! | | client | gateway | server |
//! |---|---|---|---|
//! | 1 | SYN, n | | |
//! | 2 | | SYN-ACK, c, window 0; nothing is kept | |
//! | 3 | ACK, n + 1, c + 1 | | |
//! | 4 | | a server is picked, a flow admitted; SYN, n, with what the client offered | |
//! | 5 | | | SYN-ACK, s |
//! | 6 | | ACK to the server; ACK to the client with the server's window | |
//!
//! Between 4 and 6 the flow *is opening* ([`Shift::is_opening`]); from 6 on it is a flow like any other whose ends count
//! differently, by c - s.
//!
//! The window of 0 keeps the client from sending before 6. There is no timer: what the client sends before, a probe of the
//! window or what it sends in spite of it, is dropped and has the SYN sent again; it comes again itself. A server that has
//! not got the ACK of 6 repeats its SYN-ACK, which comes to the client, whose answer to it is that ACK. A client that waits
//! for the server to speak, and whose ACK of 3 or whose SYN of 4 is lost, waits until it gives up, as with all cookies.
//!
//! What cannot happen: a SYN that changes a flow that is opening (it gets another cookie, and only the ACK of that ends the
//! flow); a byte of the client's that reaches the server before the flow is open.
//!
//! # Options
//!
//! The gateway answers before it knows the server. It says that there are timestamps, SACK and a window scale if the client
//! offers them, a scale of 7 ([`SCALE`]), and the MSS of its device.
//!
//! * A server with another scale has its windows rescaled, one without has the client's rescaled as well ([`Scale`]).
//! * A server that does no SACK ignores that of the client (RFC 2018 section 4).
//! * A server without timestamps cannot be had together with a client that was told of them (RFC 7323 section 3.2): both get
//!   a RST, and the service's clients are told of none any more. Then window scale and SACK go, too.
//! * ECN, and all other options, are not agreed on.
//!
//! # When
//!
//! [`syn_proxy`](crate::service::SynProxy) `auto` answers itself from the moment on when more than `half_open` connections of
//! the shard are half-open, and for as long as there would be more than three quarters of that if the clients that have not
//! come back had been let through. Half-open flows of all services count together, and are evicted together. Methods whose
//! answers pass the gateway by never have a SYN proxy: nothing could bring the server's numbers to the client's.

use std::time::Duration;

use super::rates::outside;
use super::{Engine, request};
use crate::command::FlowChange;
use crate::flow::{FlowId, Scale, Sender, Shift};
use crate::forward;
use crate::forward::compose::Segment;
use crate::forward::cookie::{Cookie, Cookies, Offer};
use crate::forward::refuse::Refusal;
use crate::service::{ServerId, Service, ServiceId, SynProxy};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{Options, PacketBuf, Transport, Tuple, View, ipv4, ipv6, segment, tcp};

/// What clients are told of the server's window scale: up to 8 MiB in steps of 128 bytes.
const SCALE: u8 = 7;
/// How long a cookie can be worth something after the last one was sent.
const AWAITED: Duration = Duration::from_secs(128);
/// How often `auto` looks whether it is over.
const PERIOD: Duration = Duration::from_secs(8);
/// Sooner a SYN is not sent again: a client may send many segments at a time.
const AGAIN: Duration = Duration::from_millis(200);

/// What a shard keeps for all its clients.
pub(super) struct Proxy {
    cookies: Cookies,
    /// Services with [`SynProxy::Auto`] answer by cookies.
    is_on: bool,
    /// When a period began, how many of their cookies were sent since then, and how many came back.
    since: Instant,
    sent: u64,
    proven: u64,
    /// Until when cookies may come back.
    awaited: Instant,
}

impl Proxy {
    /// `seed` must be a secret.
    pub fn new(seed: [u64; 2]) -> Proxy {
        let (since, awaited) = (Instant::ZERO, Instant::ZERO);
        Proxy { cookies: Cookies::new(seed), is_on: false, since, sent: 0, proven: 0, awaited }
    }

    /// Looks whether `auto` has to answer itself. `would`: so many flows would be half-open if one SYN a second had not been
    /// answered.
    fn look(&mut self, now: Instant, half_open: usize, limit: usize, lifetime: Duration) {
        let passed = now - self.since;
        if !self.is_on {
            self.is_on = half_open > limit;
        } else if passed >= PERIOD {
            let unproven = self.sent.saturating_sub(self.proven);
            let would_be = unproven.saturating_mul(lifetime.as_secs()) / passed.as_secs().max(1);
            self.is_on = (half_open as u64).saturating_add(would_be) > limit as u64 / 4 * 3;
        } else {
            return;
        }
        (self.since, self.sent, self.proven) = (now, 0, 0);
    }
}

impl Engine {
    /// Whether a SYN for `service` is answered by a cookie.
    pub(super) fn wants_proof(&mut self, now: Instant, service: &Service) -> bool {
        match service.spec.syn_proxy {
            _ if !service.is_two_way => false,
            SynProxy::Never => false,
            SynProxy::Always => true,
            SynProxy::Auto => {
                let (limits, timeouts) = (&self.snapshot.spec.limits, &self.snapshot.spec.timeouts);
                self.proxy.look(now, self.table.half_open(), limits.half_open, timeouts.tcp_syn_recv);
                self.proxy.is_on
            }
        }
    }

    /// As [`Engine::wants_proof`], as far as can be told without looking anew.
    pub(crate) fn foresee_proof(&self, service: &Service) -> bool {
        let is_on = self.proxy.is_on || self.table.half_open() > self.snapshot.spec.limits.half_open;
        service.is_two_way
            && match service.spec.syn_proxy {
                SynProxy::Never => false,
                SynProxy::Always => true,
                SynProxy::Auto => is_on,
            }
    }

    /// A client's SYN becomes the answer to it. Nothing is kept.
    pub(super) fn answer_syn(&mut self, now: Instant, buf: &mut PacketBuf, view: &View, service: &Service) -> Verdict {
        let (Transport::Tcp(syn), Some(tuple)) = (view.transport, view.ports()) else {
            return Verdict::Drop(DropReason::Unreadable);
        };
        if !is_readable(buf, view) {
            return Verdict::Drop(DropReason::Unreadable);
        }
        // Persistence may know of a server for this client that takes nobody else.
        if !service.is_served() && service.persisted.is_none() {
            return self.refuse(now, buf, view, service.why_nobody(), Refusal::Closed, tuple.dst);
        }
        let offered = Options::of(buf, view);
        let cookie = self.proxy.cookies.bake(now, &tuple, syn.seq, &offered, service.state.has_timestamps());
        let headers = tcp::MIN_LEN + if tuple.src.is_v4() { ipv4::MIN_LEN } else { ipv6::LEN };
        let has_room = cookie.time.is_some();
        let options = Options {
            mss: Some(self.snapshot.spec.mtu.saturating_sub(headers as u16)),
            scale: offered.scale.filter(|_| has_room).map(|_| SCALE),
            sack: offered.sack && has_room,
            timestamps: cookie.time.zip(offered.timestamps).map(|(time, (value, _))| (time, value)),
        };
        let ack = Some(syn.seq.wrapping_add(1));
        let answer = Segment { tuple: &tuple.reversed(), seq: cookie.seq, ack, flags: tcp::SYN, window: 0, options };
        if !answer.replace(buf) {
            return Verdict::Drop(DropReason::Unreadable);
        }
        self.stats.cookies_sent += 1;
        self.proxy.sent += u64::from(service.spec.syn_proxy == SynProxy::Auto);
        self.proxy.awaited = now + AWAITED;
        Verdict::Reply
    }

    /// What a client's segment without a flow proves; `None`: nothing.
    pub(super) fn proof(
        &self,
        now: Instant,
        buf: &PacketBuf,
        view: &View,
        tuple: &Tuple,
        service: &Service,
    ) -> Option<Offer> {
        let Transport::Tcp(ack) = view.transport else { return None };
        let can_be = ack.has(tcp::ACK) && !ack.has(tcp::SYN) && !ack.has(tcp::RST) && service.is_two_way;
        if !can_be || now >= self.proxy.awaited || service.spec.syn_proxy == SynProxy::Never {
            return None;
        }
        let echo = Options::of(buf, view).timestamps.map(|(_, echo)| echo);
        self.proxy.cookies.verify(now, tuple, &ack, echo)
    }

    /// The client is there: its flow is admitted, and the server asked in its name.
    pub(super) fn open(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        (service, offer): (&Service, Offer),
    ) -> Verdict {
        let (Transport::Tcp(ack), Some(tuple)) = (view.transport, view.ports()) else {
            return Verdict::Drop(DropReason::Unreadable);
        };
        if !is_readable(buf, view) {
            return Verdict::Drop(DropReason::Unreadable);
        }
        if view.ttl <= 1 {
            return self.refuse(now, buf, view, DropReason::TtlExceeded, Refusal::TimeExceeded, tuple.dst);
        }
        self.stats.cookies_proven += 1;
        self.proxy.proven += u64::from(service.spec.syn_proxy == SynProxy::Auto);
        // The client believes in its connection, and has nothing to repeat: silence would leave it waiting.
        let picked = self
            .may_begin(now, outside(tuple.src), Some(service))
            .and_then(|()| service.pick(&request(now, &tuple), true))
            .and_then(|picked| self.enter(now, service, picked, &tuple));
        let id = match picked {
            Ok(id) => id,
            Err(reason) => return self.refuse(now, buf, view, reason, Refusal::Closed, tuple.dst),
        };
        // The lead, if there is one.
        let mut shift = self.table.shift(id);
        (shift.server, shift.time, shift.is_opening) = (offer.cookie.seq, offer.cookie.time.unwrap_or(0), true);
        // Of no meaning until the server has answered: the client's window until then.
        shift.lead.at = ack.window.into();
        self.table.set_shift(id, shift);
        self.ask(now, buf, view, id, offer.isn, FlowChange::New)
    }

    /// A packet of a flow that is opening.
    pub(super) fn forward_opening(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        id: FlowId,
        sender: Sender,
    ) -> Verdict {
        let Transport::Tcp(segment) = view.transport else { return Verdict::Drop(DropReason::NotOpen) };
        if !is_readable(buf, view) {
            return Verdict::Drop(DropReason::Unreadable);
        }
        match sender {
            Sender::Client => self.client_meanwhile(now, buf, view, id, &segment),
            Sender::Server => self.server_answers(now, buf, view, id, &segment),
        }
    }

    fn client_meanwhile(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        id: FlowId,
        segment: &tcp::Header,
    ) -> Verdict {
        let (flow, shift) = (self.table.flow(id), self.table.shift(id));
        let (original, isn, seen) = (flow.original(), isn(flow), flow.seen);
        let snapshot = self.snapshot.clone();
        let service = snapshot.service(ServiceId(flow.owner.service));
        if segment.has(tcp::RST) {
            // What it acknowledges the server does not know of.
            let reset = Segment { ack: None, flags: tcp::RST, ..bare(&original, segment.seq) };
            return self.send_as(now, buf, id, Sender::Client, &reset);
        }
        if segment.has(tcp::SYN) {
            return match service.filter(|_| !segment.has(tcp::ACK) && segment.seq != isn) {
                Some(service) => self.answer_syn(now, buf, view, service),
                None => Verdict::Drop(DropReason::NotOpen),
            };
        }
        if segment.ack == shift.server.wrapping_add(1) {
            if now - seen < AGAIN {
                return Verdict::Drop(DropReason::NotOpen);
            }
            self.judge_syn(now, id);
            return self.ask(now, buf, view, id, isn, FlowChange::Update);
        }
        // The client has begun anew.
        let proof = service.and_then(|service| Some((service, self.proof(now, buf, view, &original, service)?)));
        let Some((service, offer)) = proof.filter(|(_, offer)| offer.isn != isn) else {
            return Verdict::Drop(DropReason::NotOpen);
        };
        self.end(now, id);
        self.stats.flows_reused += 1;
        self.open(now, buf, view, (service, offer))
    }

    fn server_answers(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        id: FlowId,
        segment: &tcp::Header,
    ) -> Verdict {
        let (flow, mut shift) = (self.table.flow(id), self.table.shift(id));
        let original = flow.original();
        let is_answer = segment.has(tcp::ACK) && segment.ack == isn(flow).wrapping_add(1);
        match (segment.has(tcp::RST), segment.has(tcp::SYN)) {
            (false, true) if is_answer => self.opened(now, buf, view, id, segment),
            (true, _) if is_answer => {
                // To the client it comes after the SYN-ACK that it had.
                shift.server = shift.server.wrapping_add(1).wrapping_sub(segment.seq);
                (shift.time, shift.is_opening) = (0, false);
                self.table.set_shift(id, shift);
                self.alter(now, buf, view, id, Sender::Server, FlowChange::Update)
            }
            // It has a connection of an earlier time over these ports: a client would end that (RFC 9293 section 3.5.1).
            (false, _) if segment.has(tcp::ACK) => {
                let reset = Segment { ack: None, flags: tcp::RST, ..bare(&original, segment.ack) };
                let sent = self.send_untracked(now, buf, id, Sender::Client, &reset);
                self.stats.resets += u64::from(sent == Verdict::Forward);
                sent
            }
            _ => Verdict::Drop(DropReason::NotOpen),
        }
    }

    /// The server has answered: from now on each end has the other.
    fn opened(&mut self, now: Instant, buf: &mut PacketBuf, view: &View, id: FlowId, syn_ack: &tcp::Header) -> Verdict {
        let (flow, opening) = (self.table.flow(id), self.table.shift(id));
        let (original, reply, next) = (flow.original(), flow.reply(), isn(flow).wrapping_add(1));
        let cookie = cookie(&opening);
        let (offered, options) = (cookie.offered(), Options::of(buf, view));
        if offered.timestamps.is_some() && options.timestamps.is_none() {
            return self.fall_out(now, buf, id, syn_ack, cookie);
        }
        let told = offered.scale.map_or(0, |_| SCALE);
        let server = options.scale.filter(|_| told > 0).unwrap_or(0);
        let scale = Scale {
            client: if options.scale.is_none() { offered.scale.unwrap_or(0) } else { 0 },
            server: server as i8 - told as i8,
        };
        let time = cookie.time.zip(options.timestamps).map_or(0, |(time, (value, _))| time.wrapping_sub(value));
        let shift = cookie.seq.wrapping_sub(syn_ack.seq);
        self.table.set_shift(id, Shift { server: shift, time, scale, is_opening: false, ..opening });
        let answered = self.shift_to_client(buf, view, id);
        self.track(now, id, Sender::Server, &answered, FlowChange::Update);

        let window = opening.lead.at as u16;
        let timestamps = Options::of(buf, &answered).timestamps;
        let only = |timestamps| Options { timestamps, ..Options::default() };
        let echoed = timestamps.map(|(value, echo)| (echo, value));
        let seq = cookie.seq.wrapping_add(1);
        let ack = Segment { ack: Some(seq), window, options: only(echoed), ..bare(&original, next) };
        let mut to_server = PacketBuf::with_capacity(0);
        if self.send_as(now, &mut to_server, id, Sender::Client, &ack) == Verdict::Forward {
            self.stats.count(Verdict::Forward);
            self.released.push_back(to_server);
        }
        let window = syn_ack.window >> told;
        let update = Segment { ack: Some(next), window, options: only(timestamps), ..bare(&reply, seq) };
        self.send_untracked(now, buf, id, Sender::Server, &update)
    }

    /// What the client was told of the server is not so.
    fn fall_out(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        id: FlowId,
        syn_ack: &tcp::Header,
        cookie: Cookie,
    ) -> Verdict {
        let flow = self.table.flow(id);
        if let Some(service) = self.snapshot.service(ServiceId(flow.owner.service)) {
            service.state.note_lack_of_timestamps();
        }
        let (original, reply) = (flow.original(), flow.reply());
        let reset = Segment { flags: tcp::RST, ..bare(&original, syn_ack.ack) };
        let mut to_server = PacketBuf::with_capacity(0);
        if self.send_untracked(now, &mut to_server, id, Sender::Client, &reset) == Verdict::Forward {
            self.stats.count(Verdict::Forward);
            self.released.push_back(to_server);
        }
        let seq = cookie.seq.wrapping_add(1);
        let reset = Segment { flags: tcp::RST, ack: Some(syn_ack.ack), ..bare(&reply, seq) };
        let verdict = self.send_untracked(now, buf, id, Sender::Server, &reset);
        self.stats.resets += 2;
        self.end(now, id);
        verdict
    }

    /// Has the SYN sent to the server, in place of the packet that asks for it.
    fn ask(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        id: FlowId,
        isn: u32,
        change: FlowChange,
    ) -> Verdict {
        let Transport::Tcp(ack) = view.transport else { return Verdict::Drop(DropReason::NotOpen) };
        let offered = cookie(&self.table.shift(id)).offered();
        let value = Options::of(buf, view).timestamps.map_or(0, |(value, _)| value);
        let window = Scale { client: offered.scale.unwrap_or(0), server: 0 }.to_server(ack.window);
        let options = Options { timestamps: offered.timestamps.map(|_| (value, 0)), ..offered };
        let original = self.table.flow(id).original();
        let syn = Segment { flags: tcp::SYN, window, options, ..bare(&original, isn) };
        if !syn.replace(buf) {
            return Verdict::Drop(DropReason::Unreadable);
        }
        match View::parse(buf.packet()) {
            Ok(view) => self.alter(now, buf, &view, id, Sender::Client, change),
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// Puts a segment into the buffer as if `sender` had sent it.
    fn send_as(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        id: FlowId,
        sender: Sender,
        made: &Segment<'_>,
    ) -> Verdict {
        match made.replace(buf).then(|| View::parse(buf.packet())) {
            Some(Ok(view)) => self.alter(now, buf, &view, id, sender, FlowChange::Update),
            _ => Verdict::Drop(DropReason::Unreadable),
        }
    }

    /// The same, but the flow knows nothing of it, and its numbers are the receiver's.
    fn send_untracked(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        id: FlowId,
        sender: Sender,
        made: &Segment<'_>,
    ) -> Verdict {
        let flow = self.table.flow(id);
        let (action, server) = (forward::action(flow, sender), ServerId(flow.owner.server));
        match made.replace(buf).then(|| View::parse(buf.packet())) {
            Some(Ok(view)) => self.act(now, buf, &view, &action, server),
            _ => Verdict::Drop(DropReason::Unreadable),
        }
    }
}

/// Whether the segment can be believed: it is whole, and its checksum right.
fn is_readable(buf: &PacketBuf, view: &View) -> bool {
    view.fragment.is_none() && segment::has_right_sum(buf, view)
}

/// The sequence number of the client's SYN, of which alone an opening flow knows.
fn isn(flow: &crate::flow::Flow) -> u32 {
    flow.sequence[Sender::Client as usize].end.wrapping_sub(1)
}

/// The cookie by which a flow is opening.
fn cookie(shift: &Shift) -> Cookie {
    Cookie { seq: shift.server, time: (shift.time != 0).then_some(shift.time) }
}

fn bare(tuple: &Tuple, seq: u32) -> Segment<'_> {
    Segment { tuple, seq, ack: None, flags: 0, window: 0, options: Options::default() }
}
