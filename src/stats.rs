//! Counters of one engine. Plain numbers: a shard's engine is the only writer.

use crate::command::Volume;
use crate::verdict::{DropReason, Verdict};

/// What happened since the engine was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Packets by verdict.
    pub forwarded: u64,
    pub passed: u64,
    pub replied: u64,
    /// Answers to the gateway's own probes.
    pub delivered: u64,
    /// By [`DropReason`], in the order of [`DropReason::ALL`]; refusals are counted here as well.
    pub drops: [u64; DropReason::COUNT],
    /// Dropped packets that were answered with a RST or an ICMP error.
    pub refused: u64,
    /// Answers to dropped packets that the rate limit held back.
    pub refusals_limited: u64,
    pub flows_created: u64,
    pub flows_expired: u64,
    /// Half-open, finished or once answered flows that made room for new ones.
    pub flows_evicted: u64,
    /// Flows ended by a command.
    pub flows_deleted: u64,
    /// Flows ended because a SYN started a new connection over the same ports.
    pub flows_reused: u64,
    /// Finished or unanswered flows that gave up their port of a pool for a new one.
    pub ports_reclaimed: u64,
    /// Flows ended because their server was gone.
    pub flows_evacuated: u64,
    /// RSTs sent to both ends of such flows.
    pub resets: u64,
    /// RSTs that did not fit the flow's sequence numbers and so did not end it.
    pub rst_ignored: u64,
    /// ICMP errors translated, both ways.
    pub icmp_errors: u64,
    pub fragments_held: u64,
    /// SYNs answered by a cookie.
    pub cookies_sent: u64,
    /// Cookies that clients acknowledged, so that a server was asked.
    pub cookies_proven: u64,
    /// Segments with payload that a helper did not read, because there were too many connections to read.
    pub helper_skipped: u64,
    /// SYNs that no inside host waited for and that were never answered, since too many waited for that.
    pub syns_unanswered: u64,
    /// Events lost because nobody took them in time.
    pub events_lost: u64,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            forwarded: 0,
            passed: 0,
            replied: 0,
            delivered: 0,
            drops: [0; DropReason::COUNT],
            refused: 0,
            refusals_limited: 0,
            flows_created: 0,
            flows_expired: 0,
            flows_evicted: 0,
            flows_deleted: 0,
            flows_reused: 0,
            ports_reclaimed: 0,
            flows_evacuated: 0,
            resets: 0,
            rst_ignored: 0,
            icmp_errors: 0,
            fragments_held: 0,
            cookies_sent: 0,
            cookies_proven: 0,
            helper_skipped: 0,
            syns_unanswered: 0,
            events_lost: 0,
        }
    }
}

impl Stats {
    /// Counts a packet by its verdict. A held one is counted when its fate is known.
    pub fn count(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Forward => self.forwarded += 1,
            Verdict::Pass => self.passed += 1,
            Verdict::Reply => self.replied += 1,
            Verdict::Deliver => self.delivered += 1,
            Verdict::Held => self.fragments_held += 1,
            // Whoever decides counts it.
            Verdict::Elsewhere(_) => {}
            Verdict::Drop(reason) => self.drops[reason as usize] += 1,
            Verdict::Refuse(reason) => {
                self.drops[reason as usize] += 1;
                self.refused += 1;
            }
        }
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Adds another engine's counters.
    pub fn merge(&mut self, other: &Stats) {
        for (sum, n) in self.drops.iter_mut().zip(other.drops) {
            *sum += n;
        }
        for ((_, sum), (_, n)) in self.counters_mut().into_iter().zip(other.clone().counters_mut()) {
            *sum += *n;
        }
    }

    /// The counters besides drops, by name.
    pub fn counters_mut(&mut self) -> [(&'static str, &mut u64); 22] {
        [
            ("forwarded", &mut self.forwarded),
            ("passed", &mut self.passed),
            ("replied", &mut self.replied),
            ("delivered", &mut self.delivered),
            ("refused", &mut self.refused),
            ("refusals_limited", &mut self.refusals_limited),
            ("flows_created", &mut self.flows_created),
            ("flows_expired", &mut self.flows_expired),
            ("flows_evicted", &mut self.flows_evicted),
            ("flows_deleted", &mut self.flows_deleted),
            ("flows_reused", &mut self.flows_reused),
            ("ports_reclaimed", &mut self.ports_reclaimed),
            ("flows_evacuated", &mut self.flows_evacuated),
            ("resets", &mut self.resets),
            ("rst_ignored", &mut self.rst_ignored),
            ("icmp_errors", &mut self.icmp_errors),
            ("fragments_held", &mut self.fragments_held),
            ("cookies_sent", &mut self.cookies_sent),
            ("cookies_proven", &mut self.cookies_proven),
            ("helper_skipped", &mut self.helper_skipped),
            ("syns_unanswered", &mut self.syns_unanswered),
            ("events_lost", &mut self.events_lost),
        ]
    }
}

/// What one server moved, in one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub to_server: Volume,
    pub to_client: Volume,
}
