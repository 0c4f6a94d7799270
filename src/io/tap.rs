//! A TAP device: the gateway as a host of its own on a segment. Its queues hand over IP packets and take them back, as those
//! of a TUN device do; frames, and who is where, are between it and [`crate::link`].
//!
//! The link is one for all queues, behind a mutex that nothing else is locked under. What nearly every frame is, a packet
//! for us, is told without it; a packet that is sent takes it for one look into the neighbour table. Frames that waited for
//! a neighbour are written under it, so that none overtakes them. Timers run with the control plane's tick, which writes
//! through a queue's file of its own ([`Segment::tick`]).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{debug, warn};

use super::device::Device;
use super::tuntap::{self, Kind, TunError, TunSettings};
use super::{Gateway, neighbours};
use crate::link::{self, Conflict, FrameVerdict, HEADER_LEN, Link, Mac, Neighbour, Sent, Settings};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Addr, PacketBuf};

/// How often a conflict is worth a line in the log.
const COMPLAINT: Duration = Duration::from_secs(10);

/// One queue of the device.
#[derive(Debug)]
pub struct TapQueue {
    file: File,
    segment: Arc<Segment>,
    /// Errors for the engine, about packets of this queue.
    returned: VecDeque<PacketBuf>,
}

/// The gateway's end of the segment, shared by the device's queues and the control plane.
#[derive(Debug)]
pub struct Segment {
    mac: Mac,
    origin: std::time::Instant,
    link: Mutex<Link>,
    /// A queue's file, for what the control plane's tick has to write.
    file: File,
    complained: Mutex<Option<std::time::Instant>>,
}

/// Creates the device, brings it up without any address of the kernel's, and opens its queues.
pub fn open(settings: &TunSettings, who: Settings) -> Result<(Vec<TapQueue>, Arc<Segment>), TunError> {
    let files = tuntap::open_queues(Kind::Tap, settings)?;
    let os = |what| move |source| TunError::Os { name: settings.name.clone(), what, source };
    set_kernel_mac(&files[0], &settings.name, kernel_mac(who.mac)).map_err(os("SIOCSIFHWADDR"))?;
    forbid_addresses(&settings.name);
    tuntap::bring_up(&files[0], settings)?;
    let segment = Arc::new(Segment {
        mac: who.mac,
        origin: std::time::Instant::now(),
        link: Mutex::new(Link::new(who)),
        file: files[0].try_clone().map_err(os("duplicate a queue's file"))?,
        complained: Mutex::new(None),
    });
    let queue = |file| TapQueue { file, segment: segment.clone(), returned: VecDeque::new() };
    Ok((files.into_iter().map(queue).collect(), segment))
}

impl TapQueue {
    /// Another handle of the same queue, for sending.
    pub fn sender(&self) -> io::Result<TapQueue> {
        Ok(TapQueue { file: self.file.try_clone()?, segment: self.segment.clone(), returned: VecDeque::new() })
    }
}

impl Device for TapQueue {
    fn receive(&mut self, buf: &mut PacketBuf) -> io::Result<bool> {
        if let Some(error) = self.returned.pop_front() {
            return Ok(buf.replace(error.packet()));
        }
        if !tuntap::read(&self.file, buf)? {
            return Ok(false);
        }
        if link::is_plain_packet(self.segment.mac, buf.packet()) && link::strip(buf) {
            return Ok(true);
        }
        match self.segment.handle_frame(&self.file, buf, &mut self.returned) {
            FrameVerdict::Packet => Ok(true),
            FrameVerdict::Answer => {
                log_refused(tuntap::write(&self.file, buf));
                Ok(false)
            }
            FrameVerdict::Consumed | FrameVerdict::Drop(_) => Ok(false),
        }
    }

    /// A packet that waits for its neighbour's MAC, and one that the link counted as dropped, is no error of the device.
    fn send(&mut self, buf: &mut PacketBuf) -> io::Result<()> {
        match self.segment.transmit(&self.file, buf, &mut self.returned) {
            Sent::Frame => write_frame(&self.file, buf),
            Sent::Held | Sent::Drop(_) => Ok(()),
        }
    }
}

impl Segment {
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Whom the gateway answers for besides itself, and whom it must know: see [`Link::configure`].
    pub fn configure(&self, vips: &[Addr], servers: &[Addr]) {
        let mut link = self.link.lock();
        link.configure(self.now(), vips, servers);
        self.flush(&mut link, &self.file);
    }

    /// Lets time pass: questions are asked again, addresses announced, servers that do not answer marked. Errors about
    /// packets that waited in vain go by the engine to those who sent them.
    pub fn tick(&self, gateway: &Gateway) {
        let mut returned = VecDeque::new();
        let (conflict, missing) = {
            let mut link = self.link.lock();
            let now = self.now();
            if link.poll_timeout().is_some_and(|due| due <= now) {
                link.handle_timeout(now);
            }
            self.flush(&mut link, &self.file);
            returned.extend(std::iter::from_fn(|| link.poll_returned()));
            (link.poll_conflict(), link.missing())
        };
        self.complain(conflict);
        // New flows go to others meanwhile.
        for server in gateway.snapshot().all_servers() {
            let unreachable = missing.binary_search(&server.address).is_ok();
            neighbours::mark(std::slice::from_ref(server), unreachable, "nobody answers for its address");
        }
        let mut released = Vec::new();
        for mut error in returned {
            let verdict = gateway.handle_packet(&mut error, &mut released);
            if verdict.sends() {
                released.insert(0, error);
            }
            for mut packet in released.drain(..) {
                // An error about an error is none.
                if self.transmit(&self.file, &mut packet, &mut VecDeque::new()) == Sent::Frame {
                    log_refused(write_frame(&self.file, &mut packet));
                }
            }
        }
    }

    pub fn neighbours(&self) -> Vec<Neighbour> {
        self.link.lock().neighbours(self.now())
    }

    pub fn neighbour_count(&self) -> usize {
        self.link.lock().neighbour_count()
    }

    /// By [`DropReason`].
    pub fn drops(&self) -> [u64; DropReason::COUNT] {
        *self.link.lock().drops()
    }

    pub fn settings(&self) -> Settings {
        self.link.lock().settings().clone()
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.origin.elapsed().as_micros() as u64)
    }

    fn handle_frame(&self, file: &File, buf: &mut PacketBuf, returned: &mut VecDeque<PacketBuf>) -> FrameVerdict {
        let mut link = self.link.lock();
        let verdict = link.handle_frame(self.now(), buf);
        self.flush(&mut link, file);
        returned.extend(std::iter::from_fn(|| link.poll_returned()));
        verdict
    }

    fn transmit(&self, file: &File, buf: &mut PacketBuf, returned: &mut VecDeque<PacketBuf>) -> Sent {
        let mut link = self.link.lock();
        let sent = link.transmit(self.now(), buf);
        if sent != Sent::Frame {
            self.flush(&mut link, file);
            returned.extend(std::iter::from_fn(|| link.poll_returned()));
        }
        sent
    }

    fn flush(&self, link: &mut Link, file: &File) {
        while let Some(mut frame) = link.poll_frame() {
            log_refused(write_frame(file, &mut frame));
        }
    }

    fn complain(&self, conflict: Option<Conflict>) {
        let Some(Conflict { addr, mac }) = conflict else { return };
        let mut complained = self.complained.lock();
        if complained.is_none_or(|last| last.elapsed() >= COMPLAINT) {
            *complained = Some(std::time::Instant::now());
            warn!(%addr, %mac, "another host claims this address: only one of the two may have it");
        }
    }
}

/// Writes a frame of the link's. One that is still to be cut begins with the Ethernet header of each of its pieces.
fn write_frame(file: &File, frame: &mut PacketBuf) -> io::Result<()> {
    let Some(wrap) = frame.wrap else { return tuntap::write(file, frame) };
    let header: [u8; HEADER_LEN] = *frame.packet().first_chunk().ok_or(io::ErrorKind::InvalidInput)?;
    frame.advance(HEADER_LEN);
    tuntap::write_in_pieces(file, frame, &wrap, &header)
}

fn log_refused(written: io::Result<()>) {
    if let Err(error) = written {
        debug!(%error, "the device did not take a frame");
    }
}

/// The kernel's side of the device has a MAC of its own, which nobody ever talks to. A bridge without one of its own takes
/// the lowest of its ports (Linux, `br_stp_recalculate_bridge_id`): this one is high, so that the bridge keeps what it has.
fn kernel_mac(gateway: Mac) -> Mac {
    let [first, rest @ ..] = gateway.0;
    let [b, c, d, e, f] = rest;
    Mac([if first == 0xfe { 0xfa } else { 0xfe }, b, c, d, e, f])
}

fn set_kernel_mac(file: &File, name: &str, mac: Mac) -> io::Result<()> {
    // SAFETY: all zeroes is a valid ifreq: numbers, byte arrays and a union of such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
    for (to, from) in address.sa_data.iter_mut().zip(mac.0) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: on a TAP's file SIOCSIFHWADDR reads one ifreq through the pointer (tun_chr_ioctl); `request` is one and lives
    // through the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::SIOCSIFHWADDR, &raw const request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Before the device comes up, for that is when the kernel makes a link-local address. 1 is `IN6_ADDR_GEN_MODE_NONE`.
fn forbid_addresses(name: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode");
    if let Err(error) = std::fs::write(&path, "1") {
        debug!(path, %error, "the kernel may give the device a link-local address, which nobody uses");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_has_another_mac_than_the_gateway() {
        for mac in [Mac([2, 1, 2, 3, 4, 5]), Mac([0xfe, 1, 2, 3, 4, 5])] {
            let kernel = kernel_mac(mac);
            assert!(kernel != mac && kernel.is_unicast(), "{mac} {kernel}");
        }
    }
}
