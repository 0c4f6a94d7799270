//! Servers that an operator drains: they get no new flow, and those they have go on to their end or to a deadline.
//!
//! The mark itself is in the server's state ([`ServerState::set_draining`]), where schedulers see it; it goes with that, so a
//! reload keeps it and a server that is removed and added again has none. Here is what the operator said about it: since
//! when, until when, and what then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::api::{self, Fault, FaultCode};
use super::config::format_duration;
use crate::service::{Server, ServerId, ServerState, Snapshot};

/// What becomes of the flows that are left at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// They are ended, and both ends told where the protocol has a way to.
    Reset,
    /// They go on.
    Keep,
}

impl Then {
    pub const ALL: [Then; 2] = [Then::Reset, Then::Keep];

    pub fn word(self) -> &'static str {
        match self {
            Then::Reset => "rst",
            Then::Keep => "keep",
        }
    }
}

/// The drains that go on. Those of servers that are gone are forgotten at the next look.
#[derive(Debug, Default)]
pub struct Drains(Mutex<HashMap<ServerId, Drain>>);

#[derive(Clone, Debug)]
struct Drain {
    name: String,
    /// An id may be given away; the state is the server's own.
    state: Arc<ServerState>,
    since: Instant,
    /// And what then; forgotten once it has been done.
    deadline: Option<(Instant, Then)>,
    is_empty: bool,
    /// It is not configured any more, and that was told.
    is_retired: bool,
}

/// Something that a drain has come to.
#[derive(Clone, Debug)]
pub enum Step {
    /// The last flow has ended.
    Empty(Arc<Server>, Duration),
    /// The deadline is here; flows that are left.
    Deadline(Arc<Server>, Then, u64),
    /// Its server is gone, or another one has its name now: such that flows of the one are none of the other.
    Forgotten { server: String, is_replaced: bool },
}

impl Drains {
    /// Begins to drain `server`, or says anew what is to become of a drain that goes on.
    pub fn begin(&self, server: &Server, now: Instant, deadline: Option<(Duration, Then)>) {
        let mut drains = self.0.lock();
        let same = drains.get(&server.id).filter(|drain| Arc::ptr_eq(&drain.state, &server.state));
        let since = same.map_or(now, |drain| drain.since);
        let deadline = deadline.map(|(after, then)| (now + after, then));
        let (name, state) = (server.name.clone(), server.state.clone());
        drains.insert(server.id, Drain { name, state, since, deadline, is_empty: false, is_retired: false });
        server.state.set_draining(true);
    }

    /// Tells whether it was being drained.
    pub fn cancel(&self, server: &Server) -> bool {
        self.0.lock().remove(&server.id);
        server.state.set_draining(false)
    }

    /// As the control API tells it; `None` for a server that is not being drained.
    pub fn told(&self, server: &Server, now: Instant) -> Option<api::Drain> {
        let drains = self.0.lock();
        let drain = drains.get(&server.id).filter(|drain| Arc::ptr_eq(&drain.state, &server.state))?;
        let deadline = drain.deadline.map(|(at, then)| (at.saturating_duration_since(now), then));
        Some(api::Drain {
            since: now.saturating_duration_since(drain.since).as_secs(),
            // Rounded up: a drain that goes on has time left.
            left: deadline.map(|(left, _)| left.as_millis().div_ceil(1000) as u64),
            then: deadline.map(|(_, then)| then.word().to_owned()),
        })
    }

    /// What has happened since the last look. To be called every second or so.
    pub fn steps(&self, snapshot: &Snapshot, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut drains = self.0.lock();
        if drains.is_empty() {
            return steps;
        }
        let live: HashMap<ServerId, &Server> = snapshot
            .live
            .iter()
            .flat_map(|service| service.all_servers())
            .map(|server| (server.id, &**server))
            .collect();
        drains.retain(|id, drain| {
            let same = |state: &Arc<ServerState>| Arc::ptr_eq(state, &drain.state);
            if !drain.is_retired && !live.get(id).is_some_and(|server| same(&server.state)) {
                drain.is_retired = true;
                let takes_its_place = |server: &&Server| server.name == drain.name && !server.state.is_draining();
                let is_replaced = live.values().any(takes_its_place);
                steps.push(Step::Forgotten { server: drain.name.clone(), is_replaced });
            }
            // The flows of one that is configured no more keep their deadline.
            let Some(server) = snapshot.server(*id).filter(|server| same(&server.state)) else { return false };
            let flows = server.load.flows();
            if flows == 0 && !drain.is_empty {
                steps.push(Step::Empty(server.clone(), now.saturating_duration_since(drain.since)));
            }
            drain.is_empty = flows == 0;
            if let Some((_, then)) = drain.deadline.take_if(|(at, _)| *at <= now)
                && flows > 0
            {
                steps.push(Step::Deadline(server.clone(), then, flows));
            }
            true
        });
        steps
    }
}

/// When, and what then, from what a client asked for. Without a deadline there is nothing to be done at it.
pub fn deadline(after: Option<&str>, then: Option<&str>) -> Result<Option<(Duration, Then)>, Fault> {
    let bad = |message: String| Fault::new(FaultCode::BadRequest, message);
    let word = then.map(|word| {
        let known = Then::ALL.into_iter().find(|then| then.word() == word);
        known.ok_or_else(|| bad(format!("then {word:?} is unknown; there are rst and keep")))
    });
    let then = word.transpose()?;
    let Some(after) = after else {
        return match then {
            None => Ok(None),
            Some(then) => Err(bad(format!("then {:?} is for the end of a deadline, and there is none", then.word()))),
        };
    };
    let longest = Duration::from_secs(31 * 86_400);
    let after = super::config::parse_duration(after).filter(|after| *after <= longest).ok_or_else(|| {
        bad(format!("deadline {after:?} is no duration of up to {}; write \"5m\"", format_duration(longest)))
    })?;
    Ok(Some((after, then.unwrap_or(Then::Reset))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{ServerSpec, ServiceSpec, SnapshotSpec};
    use crate::wire::Addr;

    fn snapshot(servers: &[u8], previous: Option<&Snapshot>) -> Snapshot {
        let server = |last: &u8| ServerSpec {
            name: last.to_string(),
            address: Addr::from_v4([10, 0, 0, *last]),
            weight: 1,
            ..ServerSpec::default()
        };
        let service = ServiceSpec {
            name: "web".to_owned(),
            vip: Addr::from_v4([203, 0, 113, 10]),
            servers: servers.iter().map(server).collect(),
            ..ServiceSpec::default()
        };
        Snapshot::build(SnapshotSpec { services: vec![service], ..SnapshotSpec::default() }, previous).unwrap()
    }

    #[test]
    fn a_drain_ends_with_the_last_flow_or_at_its_deadline() {
        let (first, drains, start) = (snapshot(&[1, 2], None), Drains::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let [one, two] = [&first.live[0].servers[0], &first.live[0].servers[1]];
        [one, two].iter().for_each(|server| server.start(true));
        drains.begin(one, start, Some((Duration::from_secs(60), Then::Reset)));
        drains.begin(two, start, None);
        assert!(!one.is_available() && !two.is_available());
        assert!(drains.steps(&first, after(59)).is_empty());
        let told = api::Drain { since: 58, left: Some(2), then: Some("rst".to_owned()) };
        assert_eq!(drains.told(one, after(58)), Some(told));
        assert_eq!(drains.told(two, after(58)).unwrap().left, None);
        assert!(
            matches!(drains.steps(&first, after(60))[..], [Step::Deadline(ref server, Then::Reset, 1)] if server.id == one.id)
        );
        assert!(drains.steps(&first, after(61)).is_empty(), "once");
        two.end(true);
        assert!(matches!(drains.steps(&first, after(70))[..], [Step::Empty(ref server, _)] if server.id == two.id));
        assert!(drains.steps(&first, after(71)).is_empty(), "once");
        assert!(drains.cancel(two) && two.is_available() && drains.told(two, after(71)).is_none());
        assert!(!drains.cancel(two));
    }

    #[test]
    fn a_reload_keeps_a_drain_and_a_removal_forgets_it() {
        let (first, drains, now) = (snapshot(&[1, 2], None), Drains::default(), Instant::now());
        let server = &first.live[0].servers[0];
        server.start(true);
        drains.begin(server, now, None);
        let more = snapshot(&[1, 2, 3], Some(&first));
        assert!(!more.live[0].servers[0].is_available());
        assert!(drains.told(&more.live[0].servers[0], now).is_some());
        let gone = snapshot(&[2, 3], Some(&more));
        let gone = snapshot(&[2], Some(&gone));
        let again = snapshot(&[1, 2], Some(&gone));
        // Its flow goes on: the old one is there still.
        let told = drains.steps(&again, now);
        assert!(
            matches!(&told[..], [Step::Forgotten { server, is_replaced: true }] if server == "1"),
            "an operator learns that a server that was drained serves: {told:?}"
        );
        assert!(drains.steps(&again, now).is_empty(), "once");
        assert!(again.live[0].servers[0].is_available());
        assert!(again.live[0].servers.iter().all(|server| drains.told(server, now).is_none()));
    }

    #[test]
    fn what_a_deadline_may_be() {
        let seconds = Duration::from_secs;
        assert_eq!(deadline(None, None), Ok(None));
        assert_eq!(deadline(Some("5m"), None), Ok(Some((seconds(300), Then::Reset))));
        assert_eq!(deadline(Some("1s"), Some("keep")), Ok(Some((seconds(1), Then::Keep))));
        for (after, then) in [(None, Some("rst")), (Some("5"), None), (Some("32d"), None), (Some("5m"), Some("x"))] {
            assert!(deadline(after, then).is_err(), "{after:?} {then:?}");
        }
    }
}
