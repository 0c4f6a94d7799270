//! The engine's part in flows whose server serves no more: they are reset or forgotten, by a command, slice by slice, or by
//! the first packet that meets one before the command came to it. Nobody is left to talk to a dead server.

use super::Engine;
use crate::command::{DELETE_BUDGET, Extent, Only, Outcome, RESET_BUDGET};
use crate::flow::{Flow, FlowId, Marks, Sender, TcpState};
use crate::forward::masquerade::MappingId;
use crate::forward::{self, Context, reset};
use crate::service::{FlowPolicy, Server, ServerId, ServiceId};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Protocol, Transport, Tuple, View, tcp};

/// What becomes of a flow whose server is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on.
    Keep,
    /// It ends, and nobody is told: the client's next packet may start another one.
    Forget,
    /// It ends, and both ends get a RST.
    Reset,
}

/// What becomes of a packet that came for a known flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    /// It is of the flow.
    GoesOn,
    /// The flow is over; the packet is looked at as if there had been none. Its mapping, if it had one, is held meanwhile.
    Anew(Option<MappingId>),
    /// The flow is over, and the packet with it.
    Over(DropReason),
}

/// A connection that the server has not answered is forgotten: the client's next SYN comes to another server. One that is
/// over as well; nobody waits for it. Nothing else ends while passive checks alone say that the server is down.
fn fate(flow: &Flow, policy: Option<FlowPolicy>, is_doubted: bool) -> Fate {
    let is_over = matches!(flow.tcp_state, TcpState::TimeWait | TcpState::Close);
    let is_half_open = flow.tcp_state.is_half_open();
    match policy {
        _ if flow.owner.marks.has(Marks::PROBE) => Fate::Keep,
        Some(FlowPolicy::Keep) => Fate::Keep,
        _ if is_doubted && !flow.is_unanswered() => Fate::Keep,
        _ if flow.protocol != Protocol::TCP || is_over || flow.is_unanswered() => Fate::Forget,
        Some(FlowPolicy::Reschedule) if is_half_open => Fate::Forget,
        _ => Fate::Reset,
    }
}

/// Whether a server is still one of those that are evacuated.
fn concerns(only: Only, server: &Server) -> bool {
    match only {
        Only::All => true,
        Only::Down => !server.state.is_up(),
        Only::Draining => server.state.is_draining(),
    }
}

impl Engine {
    /// A slice of a [`crate::command::Command::Evacuate`].
    pub(super) fn evacuate(
        &mut self,
        now: Instant,
        servers: &[ServerId],
        (policy, extent): (Option<FlowPolicy>, Extent),
        cursor: usize,
    ) -> Outcome {
        let places = self.table.places();
        let end = cursor.saturating_add(DELETE_BUDGET).min(places);
        let (mut count, mut resets) = (0, 0);
        let mut next = end;
        for place in cursor..end {
            let Some(id) = self.table.at(place) else { continue };
            let flow = self.table.flow(id);
            let server = ServerId(flow.owner.server);
            if servers.binary_search(&server).is_err() || flow.created > extent.began {
                continue;
            }
            let Some(server) = self.snapshot.server(server).filter(|server| concerns(extent.only, server)) else {
                continue;
            };
            match fate(flow, policy, extent.only == Only::Down && server.state.is_doubted()) {
                Fate::Keep => continue,
                Fate::Forget => {}
                Fate::Reset => {
                    self.reset(now, id, &[Sender::Client, Sender::Server]);
                    resets += 1;
                }
            }
            self.evacuate_one(now, id);
            count += 1;
            if resets == RESET_BUDGET {
                next = place + 1;
                break;
            }
        }
        Outcome::Deleted { count, next: (next < places).then_some(next) }
    }

    /// What becomes of a packet of a flow whose server is down.
    #[cold]
    pub(super) fn meet_lost(&mut self, now: Instant, id: FlowId, sender: Sender, view: &View) -> Meeting {
        let segment = match &view.transport {
            Transport::Tcp(segment) => Some(segment),
            _ => None,
        };
        match self.fate_of(self.table.flow(id)) {
            Fate::Keep => return Meeting::GoesOn,
            // It answers after all.
            Fate::Forget if sender == Sender::Server => return Meeting::GoesOn,
            Fate::Forget => {}
            // The client has given the connection up, and starts another one.
            Fate::Reset if sender == Sender::Client && segment.is_some_and(|s| s.has(tcp::SYN) && !s.has(tcp::ACK)) => {
                self.reset(now, id, &[Sender::Client]);
            }
            Fate::Reset => {
                // Who sends a RST needs none.
                let ends = [sender.other(), sender];
                let told = if segment.is_some_and(|s| s.has(tcp::RST)) { &ends[1..] } else { &ends[..] };
                self.reset(now, id, told);
                self.evacuate_one(now, id);
                return Meeting::Over(DropReason::ServerDown);
            }
        }
        self.evacuate_one(now, id);
        Meeting::Anew(None)
    }

    /// What becomes of the flow that a packet of this tuple is of; `None` while its server is up, or where there is none.
    pub(crate) fn foresee_lost(&self, tuple: &Tuple) -> Option<Fate> {
        let (id, _) = self.table.lookup(tuple)?;
        let flow = self.table.flow(id);
        let server = self.snapshot.server(ServerId(flow.owner.server))?;
        (!server.state.is_up()).then(|| self.fate_of(flow))
    }

    /// What becomes of a flow whose server is down, by the policy of its service.
    fn fate_of(&self, flow: &Flow) -> Fate {
        let service = self.snapshot.service(ServiceId(flow.owner.service));
        let server = self.snapshot.server(ServerId(flow.owner.server));
        let is_doubted = server.is_some_and(|server| server.state.is_doubted());
        fate(flow, service.and_then(|service| service.spec.on_server_down), is_doubted)
    }

    fn evacuate_one(&mut self, now: Instant, id: FlowId) {
        self.end(now, id);
        self.stats.flows_evacuated += 1;
    }

    /// Has a RST sent in the name of each of `senders`, to the other end, by the way that the flow's packets go.
    fn reset(&mut self, now: Instant, id: FlowId, senders: &[Sender]) {
        for &sender in senders {
            let Some(mut buf) = reset::from(self.table.flow(id), sender) else { continue };
            let Ok(view) = View::parse(buf.packet()) else { continue };
            let flow = self.table.flow(id);
            let server = self.snapshot.server(ServerId(flow.owner.server)).map(AsRef::as_ref);
            let context = Context { now, spec: &self.snapshot.spec, server, is_probe: false };
            // A helper may have shown the other end other numbers.
            self.renumber(&mut buf, &view, id, sender);
            // A server that cannot be reached needs no telling.
            if forward::act(&forward::action(flow, sender), &mut buf, &view, context).is_ok() {
                self.released.push_back(buf);
                self.stats.resets += 1;
            }
        }
    }
}
