//! What a real server tells of itself: the answer to `status` on its control socket.

use serde::{Deserialize, Serialize};

use super::Shown;
use crate::control::api::{Drops, Volume};
use crate::forward::receive;
use crate::verdict::DropReason;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    /// Seconds.
    pub uptime: u64,
    pub device: String,
    /// `None`: the command line.
    pub config: Option<String>,
    pub vips: Vec<String>,
    pub gateways: Vec<String>,
    pub tunnels: Vec<String>,
    /// Bytes that a packet inside the tunnel may have.
    pub tunnel_mtu: u32,
    /// Packets that were taken out of a tunnel, and their bytes without outer headers.
    pub ipip: Volume,
    pub gue: Volume,
    /// Packets handed to the host; a super-packet of many counts as one.
    pub written: u64,
    pub write_errors: u64,
    /// Packets that the kernel dropped because they were not taken in time.
    pub overruns: u64,
    /// The reasons that occurred.
    pub drops: Vec<Drops>,
}

impl Status {
    pub(super) fn of(shown: &Shown) -> Status {
        let totals = shown.receivers.lock().totals();
        let (config, tunnel_mtu) = shown.running.lock().clone();
        let words = |list: &[crate::wire::Addr]| list.iter().map(ToString::to_string).collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: shown.started.elapsed().as_secs(),
            device: config.device.clone(),
            config: shown.file.as_ref().map(|path| path.display().to_string()),
            vips: words(&config.vips),
            gateways: words(&config.gateways),
            tunnels: config.tunnels.iter().map(ToString::to_string).collect(),
            tunnel_mtu,
            ipip: volume(totals.received.ipip),
            gue: volume(totals.received.gue),
            written: totals.written,
            write_errors: totals.write_errors,
            overruns: totals.overruns,
            drops: drops(&totals.received),
        }
    }
}

fn volume(volume: receive::Volume) -> Volume {
    Volume { packets: volume.packets, bytes: volume.bytes }
}

fn drops(received: &receive::Received) -> Vec<Drops> {
    let counted = DropReason::ALL.iter().map(|&reason| (reason, received.drops[reason as usize]));
    let occurred = counted.filter(|(_, packets)| *packets > 0);
    occurred
        .map(|(reason, packets)| Drops {
            reason: reason.word().to_owned(),
            packets,
            meaning: reason.sentence().to_owned(),
            shortage: reason.is_shortage(),
        })
        .collect()
}
