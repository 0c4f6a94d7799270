//! The end of a gateway that nobody started by hand.
//!
//! `ipvsadm` starts a gateway for the first service of a network namespace. IPVS, which it stands for, ends with the
//! namespace and takes nothing while its table is empty. So this gateway stops by itself
//!
//! - when it has had neither service nor flow for a while. Timeouts that were set (`ipvsadm --set`) are worth keeping, though;
//! - when its namespace is gone but for itself: no interface is left, where there was one, but the loopback, its own device and
//!   those that the kernel puts into every namespace, or the name that the namespace had (`ip netns`) is gone. Its process would keep the
//!   namespace, and whatever links lead there, for ever.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::io::netns::{Netns, interfaces};
use crate::timeouts::Timeouts;

/// How often it is looked whether the gateway is needed.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// How long a namespace may look abandoned: links are taken away and others put there.
const ALONE: Duration = Duration::from_secs(10);

/// What the kernel makes in every namespace for each tunnel module that is loaded (`net.core.fb_tunnels_only_for_init_net`).
const FALLBACK_TUNNELS: [&str; 9] =
    ["tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"];

/// That the gateway runs on demand.
#[derive(Clone, Debug)]
pub struct OnDemand {
    /// Of this gateway alone; goes with it.
    pub directory: PathBuf,
    /// Without service and flow.
    pub idle: Duration,
}

/// Since when there has been no need for the gateway.
#[derive(Debug)]
pub(super) struct Lease {
    on_demand: OnDemand,
    device: String,
    /// With a name at the start.
    named: Option<Netns>,
    /// Rules may come long before the links.
    has_had_links: bool,
    idle_since: Option<Instant>,
    alone_since: Option<Instant>,
}

/// What the gateway has to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub services: usize,
    pub flows: usize,
    pub timeouts: Timeouts,
}

impl Lease {
    pub(super) fn begin(on_demand: OnDemand, device: &str) -> Lease {
        let named = Netns::own().ok().filter(|own| own.has_name().unwrap_or(false));
        Lease { on_demand, device: device.to_owned(), named, has_had_links: false, idle_since: None, alone_since: None }
    }

    /// Why the gateway is to stop now, if it is.
    pub(super) fn is_over(&mut self, now: Instant, work: Work) -> Option<&'static str> {
        let is_alone = self.is_alone();
        self.is_over_as(now, work, is_alone)
    }

    fn is_over_as(&mut self, now: Instant, work: Work, alone: bool) -> Option<&'static str> {
        let idle = work.services == 0 && work.flows == 0 && work.timeouts == Timeouts::IPVS;
        if has_lasted(&mut self.alone_since, alone, now, ALONE) {
            return Some("the network namespace is gone");
        }
        has_lasted(&mut self.idle_since, idle, now, self.on_demand.idle).then_some("there is no service any more")
    }

    /// What cannot be known is as it was.
    fn is_alone(&mut self) -> bool {
        let is_deserted = interfaces().is_ok_and(|names| self.is_deserted(&names));
        is_deserted || self.named.is_some_and(|netns| netns.has_name().is_ok_and(|named| !named))
    }

    /// Whether the links that there were are gone.
    fn is_deserted(&mut self, names: &[String]) -> bool {
        let is_link =
            |name: &String| *name != "lo" && *name != self.device && !FALLBACK_TUNNELS.contains(&name.as_str());
        let has_links = names.iter().any(is_link);
        self.has_had_links |= has_links;
        self.has_had_links && !has_links
    }

    /// Removes what was made for this gateway. The lock is among it, and is held until the process ends.
    pub(super) fn end(self) {
        for file in ["gatun.toml", "log", "lock"] {
            let _ = fs::remove_file(self.on_demand.directory.join(file));
        }
        if let Err(error) = fs::remove_dir(&self.on_demand.directory) {
            tracing::debug!(%error, "{} stays", self.on_demand.directory.display());
        }
    }
}

/// Whether `is` has been so for `long`.
fn has_lasted(since: &mut Option<Instant>, is: bool, now: Instant, long: Duration) -> bool {
    *since = if is { since.or(Some(now)) } else { None };
    since.is_some_and(|since| now.saturating_duration_since(since) >= long)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        let on_demand = OnDemand { directory: PathBuf::from("/nonexistent"), idle: Duration::from_secs(30) };
        Lease {
            on_demand,
            device: "gatun0".to_owned(),
            named: None,
            has_had_links: false,
            idle_since: None,
            alone_since: None,
        }
    }

    const NONE: Work = Work { services: 0, flows: 0, timeouts: Timeouts::IPVS };

    #[test]
    fn a_gateway_stops_once_it_has_been_idle_for_long_enough_at_a_stretch() {
        let (mut lease, begin) = (lease(), Instant::now());
        let mut at = |seconds, work| lease.is_over_as(begin + Duration::from_secs(seconds), work, false).is_some();
        assert!(!at(0, NONE));
        assert!(!at(29, NONE));
        assert!(!at(31, Work { services: 1, ..NONE }));
        assert!(!at(32, NONE));
        assert!(!at(61, Work { flows: 1, ..NONE }));
        assert!(!at(62, NONE));
        assert!(!at(91, NONE));
        assert!(at(92, NONE));
    }

    // `ip netns add x; ipvsadm -A …`, and the links come later.
    #[test]
    fn a_namespace_without_links_yet_is_not_deserted() {
        let mut lease = lease();
        let mut look =
            |names: &[&str]| lease.is_deserted(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert!(!look(&["lo", "gatun0", "sit0"]));
        assert!(!look(&["lo", "gatun0", "sit0", "eth0"]));
        assert!(look(&["lo", "gatun0", "sit0"]));
        assert!(!look(&["lo", "gatun0", "eth1"]));
    }

    #[test]
    fn timeouts_that_were_set_keep_it() {
        let (mut lease, begin) = (lease(), Instant::now());
        let set = Timeouts { udp: Duration::from_secs(1), ..Timeouts::IPVS };
        for seconds in [0, 1000] {
            let now = begin + Duration::from_secs(seconds);
            assert_eq!(lease.is_over_as(now, Work { timeouts: set, ..NONE }, false), None);
        }
    }

    #[test]
    fn a_gateway_that_is_alone_stops_whatever_it_has() {
        let (mut lease, begin) = (lease(), Instant::now());
        let work = Work { services: 3, flows: 7, ..NONE };
        for (seconds, over) in [(0, false), (9, false), (10, true)] {
            let now = begin + Duration::from_secs(seconds);
            assert_eq!(lease.is_over_as(now, work, true).is_some(), over, "{seconds}");
        }
    }
}
