//! What TUN and TAP devices have in common: the clone device, its ioctls, and what can go wrong with them (Linux,
//! `drivers/net/tun.c`).
//!
//! The fds are opened here, because the `tun` crate knows neither offloads nor queues; it configures the link that they
//! belong to.

use std::ffi::c_ulong;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use thiserror::Error;
use tracing::{info, warn};
use tun::AbstractDevice;

use super::device::write_pieces;
use crate::wire::vnet::VNET_HDR_LEN;
use crate::wire::{PacketBuf, Wrap};

const CLONE_DEVICE: &str = "/dev/net/tun";

// include/uapi/linux/if_tun.h
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;
const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO: u32 = 0x02 | 0x04 | 0x08; // TSO4, TSO6, TSO with ECN
const TUN_F_USO: u32 = 0x20 | 0x40; // USO4, USO6: Linux 6.2

/// What the device should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunSettings {
    /// 1 to 15 bytes.
    pub name: String,
    /// 1 to 16.
    pub queues: usize,
    /// 1280 to 65535.
    pub mtu: u16,
    /// Whether to ask for offloads at all.
    pub offload: bool,
}

/// Why there is no device. Each says what to do.
#[derive(Debug, Error)]
pub enum TunError {
    #[error(
        "{CLONE_DEVICE} does not exist: load the tun module, or in a container pass the device in (--device {CLONE_DEVICE})"
    )]
    NoTunDriver,
    #[error("not allowed to open {CLONE_DEVICE} or to create {0}: run as root or with CAP_NET_ADMIN")]
    NotPermitted(String),
    #[error("device {0} is in use by another process: stop that one, or choose another name with [gateway] device")]
    Busy(String),
    #[error(
        "device {0} exists and is another kind of device, or has another number of queues: delete it (ip link del {0}), or choose another name"
    )]
    WrongKind(String),
    #[error("device name {0:?} is not between 1 and 15 bytes long")]
    BadName(String),
    #[error("device {name}: {what}: {source}")]
    Os { name: String, what: &'static str, source: io::Error },
    #[error("device {name}: {source}")]
    Configure { name: String, source: tun::Error },
}

/// What the packets of a device begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The IP header.
    Tun,
    /// The Ethernet header.
    Tap,
}

impl Kind {
    const fn flag(self) -> libc::c_int {
        match self {
            Kind::Tun => libc::IFF_TUN,
            Kind::Tap => libc::IFF_TAP,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Kind::Tun => "TUN",
            Kind::Tap => "TAP",
        }
    }
}

/// Creates the device and opens its queues, each of them a file; at least one.
pub fn open_queues(kind: Kind, settings: &TunSettings) -> Result<Vec<File>, TunError> {
    let name = settings.name.as_str();
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(TunError::BadName(name.into()));
    }
    let queues = (0..settings.queues.max(1)).map(|_| open_queue(kind, settings)).collect::<Result<Vec<_>, _>>()?;
    let offloads = if settings.offload { set_offloads(kind, &queues[0]) } else { "none" };
    info!(device = name, queues = queues.len(), mtu = settings.mtu, offloads, "opened the {} device", kind.word());
    Ok(queues)
}

/// Sets the MTU and brings the device up.
pub fn bring_up(queue: &File, settings: &TunSettings) -> Result<(), TunError> {
    let fail = |source| TunError::Configure { name: settings.name.clone(), source };
    let mut config = tun::Configuration::default();
    config.raw_fd(queue.as_raw_fd()).close_fd_on_drop(false).tun_name(&settings.name);
    let mut device = tun::create(&config).map_err(fail)?;
    device.set_mtu(settings.mtu).map_err(fail)?;
    device.enabled(true).map_err(fail)
}

/// Reads a packet; `false` when none came.
pub fn read(mut queue: &File, buf: &mut PacketBuf) -> io::Result<bool> {
    match queue.read(buf.read_area()) {
        Ok(len) => Ok(buf.read_done(len)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes the packet as it is.
pub fn write(mut queue: &File, buf: &mut PacketBuf) -> io::Result<()> {
    let bytes = buf.write_area().ok_or(io::ErrorKind::InvalidInput)?;
    queue.write(bytes).map(drop)
}

/// Cuts the packet and writes the pieces, each with `front` before its headers.
pub fn write_in_pieces(mut queue: &File, buf: &PacketBuf, wrap: &Wrap, front: &[u8]) -> io::Result<()> {
    write_pieces(buf, wrap, front.len(), |vnet, headers, payload| {
        let parts = [vnet, front, headers, payload].map(IoSlice::new);
        queue.write_vectored(&parts).map(drop)
    })
}

fn open_queue(kind: Kind, settings: &TunSettings) -> Result<File, TunError> {
    let name = settings.name.as_str();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(CLONE_DEVICE)
        .map_err(|error| explain(name, "open", error))?;
    let mut flags = kind.flag() | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if settings.queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    set_interface(&file, name, flags as i16).map_err(|error| explain(name, "TUNSETIFF", error))?;
    let len = VNET_HDR_LEN as i32;
    // SAFETY: TUNSETVNETHDRSZ reads an int through the pointer; `len` lives through the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const len) };
    if done < 0 {
        return Err(explain(name, "TUNSETVNETHDRSZ", io::Error::last_os_error()));
    }
    Ok(file)
}

fn set_interface(file: &File, name: &str, flags: i16) -> io::Result<()> {
    // SAFETY: all zeroes is a valid ifreq: numbers, byte arrays and a union of such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFF reads and writes one ifreq through the pointer; `request` is one, with a terminated name.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks for the most the kernel gives, step by step less; returns what it gave in words.
fn set_offloads(kind: Kind, file: &File) -> &'static str {
    let steps = [
        (TUN_F_CSUM | TUN_F_TSO | TUN_F_USO, "checksum, TCP and UDP segmentation"),
        (TUN_F_CSUM | TUN_F_TSO, "checksum and TCP segmentation"),
        (TUN_F_CSUM, "checksum"),
    ];
    for (flags, words) in steps {
        // SAFETY: TUNSETOFFLOAD takes the flags by value.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, c_ulong::from(flags)) } == 0 {
            return words;
        }
        let error = io::Error::last_os_error();
        warn!(offloads = words, %error, "the kernel refuses these offloads of the {} device; trying fewer", kind.word());
    }
    "none"
}

pub fn explain(name: &str, what: &'static str, error: io::Error) -> TunError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoTunDriver,
        Some(libc::EPERM | libc::EACCES) => TunError::NotPermitted(name.into()),
        Some(libc::EBUSY) => TunError::Busy(name.into()),
        Some(libc::EINVAL) if what == "TUNSETIFF" => TunError::WrongKind(name.into()),
        _ => TunError::Os { name: name.into(), what, source: error },
    }
}
