//! What the device counts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::api;
use crate::io::worker::DeviceCounters;

/// The device's name and its workers' counters.
#[derive(Debug)]
pub struct Device {
    name: String,
    counters: Arc<DeviceCounters>,
}

impl Device {
    pub fn new(name: &str, counters: &Arc<DeviceCounters>) -> Device {
        Device { name: name.to_owned(), counters: counters.clone() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn counters(&self) -> api::Device {
        api::Device {
            name: self.name.clone(),
            received: self.counters.received.load(Ordering::Relaxed),
            sent: self.counters.sent.load(Ordering::Relaxed),
            send_errors: self.counters.send_errors.load(Ordering::Relaxed),
            dropped: std::fs::read_to_string("/proc/net/dev").ok().and_then(|text| tx_dropped(&text, &self.name)),
        }
    }
}

/// The column of `/proc/net/dev` (proc_pid_net(5)); `/sys` may show the interfaces of another network namespace.
fn tx_dropped(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    // Eight columns of what was received; then bytes, packets, errs, drop.
    line.split_whitespace().nth(11)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_column() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
gatun01:     9       9    9    9    9     9          9         9        9       9    9    9    9     9       9          9
gatun0:     1       2    3    4    5     6          7         8        9      10   11   4711    13    14      15         16
";
        assert_eq!(tx_dropped(text, "gatun0"), Some(4711));
        assert_eq!(tx_dropped(text, "lo"), Some(12));
        assert_eq!(tx_dropped(text, "gatun"), None);
    }
}
