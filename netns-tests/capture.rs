//! Captures without tcpdump: that drops its privileges, which root of a user namespace cannot, and takes its time to start.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::process;

/// Headers are of interest; of a super-packet's 64 KiB, too.
const SNAP_LENGTH: usize = 256;
/// A capture that long has shown what there is to see.
const MAX_FILE: usize = 64 << 20;
/// Packets of every interface, each with its index and direction.
const LINKTYPE_LINUX_SLL2: u32 = 276;
/// Bare IP packets.
const LINKTYPE_RAW: u32 = 101;
const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;

/// A capture in a namespace. Dropping it completes the file.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Of every interface, also of those that come later; headers only.
    pub fn of_all(netns: &str, path: &Path) -> Result<Capture> {
        Capture::start(netns, None, path)
    }

    /// Of the IP packets on one interface, whole.
    pub fn of_interface(netns: &str, interface: &str, path: &Path) -> Result<Capture> {
        Capture::start(netns, Some(interface), path)
    }

    fn start(netns: &str, interface: Option<&str>, path: &Path) -> Result<Capture> {
        let socket = process::inside(netns, || open(interface))?.context("a packet socket")?;
        let mut file = BufWriter::new(File::create(path).with_context(|| path.display().to_string())?);
        let link_type = if interface.is_some() { LINKTYPE_RAW } else { LINKTYPE_LINUX_SLL2 };
        write_file_header(&mut file, link_type)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            if let Err(error) = record(&socket, &mut file, link_type, &stopped) {
                eprintln!("the capture ends: {error}");
            }
        });
        Ok(Capture { stop, thread: Some(thread) })
    }
}

/// The IP packets of a capture of one interface, each as it was on the wire.
pub fn packets(path: &Path) -> Result<Vec<Vec<u8>>> {
    let mut reader = pcap_file::pcap::PcapReader::new(File::open(path).with_context(|| path.display().to_string())?)?;
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet() {
        packets.push(packet?.data.into_owned());
    }
    Ok(packets)
}

/// Source and destination of a packet of TCP or UDP, if it is one.
pub fn endpoints(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let parsed = etherparse::SlicedPacket::from_ip(packet).ok()?;
    let (from, to): (IpAddr, IpAddr) = match parsed.net? {
        etherparse::NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        etherparse::NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        _ => return None,
    };
    let ports = match parsed.transport? {
        etherparse::TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        etherparse::TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        _ => return None,
    };
    Some(((from, ports.0).into(), (to, ports.1).into()))
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(interface: Option<&str>) -> std::io::Result<Socket> {
    let protocol = i32::from(ETH_P_ALL.to_be());
    // Protocol 0 receives nothing until the socket is bound to its interface.
    let socket =
        Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(if interface.is_some() { 0 } else { protocol })))?;
    socket.set_recv_buffer_size(8 << 20)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    if let Some(interface) = interface {
        let name = std::ffi::CString::new(interface)?;
        // SAFETY: the name ends with a NUL. The address is written as a whole, in the type that the family means.
        let address = unsafe {
            let index = libc::if_nametoindex(name.as_ptr());
            let mut storage = SockAddrStorage::zeroed();
            let link = storage.view_as::<libc::sockaddr_ll>();
            link.sll_family = libc::AF_PACKET as u16;
            link.sll_protocol = ETH_P_ALL.to_be();
            link.sll_ifindex = index as i32;
            SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t)
        };
        socket.bind(&address)?;
    }
    Ok(socket)
}

/// The header of a pcap file with times in microseconds.
fn write_file_header(file: &mut impl Write, link_type: u32) -> std::io::Result<()> {
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, link_type] {
        file.write_all(&u32::to_ne_bytes(word))?;
    }
    Ok(())
}

fn record(socket: &Socket, file: &mut impl Write, link_type: u32, stop: &AtomicBool) -> std::io::Result<()> {
    let mut buffer = vec![MaybeUninit::uninit(); if link_type == LINKTYPE_RAW { 65536 } else { SNAP_LENGTH }];
    let mut written = 0;
    loop {
        // With MSG_TRUNC the length is the packet's own.
        let (length, from) = match socket.recv_from_with_flags(&mut buffer, libc::MSG_TRUNC) {
            Ok(received) => received,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if stop.load(Ordering::Relaxed) {
                    return file.flush();
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        if written > MAX_FILE {
            continue;
        }
        let kept = length.min(buffer.len());
        // SAFETY: the kernel has written this many bytes, as the packet is at least that long.
        let packet = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), kept) };
        written += kept;
        match link_type {
            LINKTYPE_RAW if packet.first().is_some_and(|byte| matches!(byte >> 4, 4 | 6)) => {
                write_packet(file, &[], packet, length)?;
            }
            LINKTYPE_RAW => {}
            _ => write_packet(file, &sll2_header(&from), packet, length)?,
        }
    }
}

fn write_packet(file: &mut impl Write, header: &[u8], packet: &[u8], length: usize) -> std::io::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let sizes = [header.len() + packet.len(), header.len() + length];
    for word in [now.as_secs() as u32, now.subsec_micros(), sizes[0] as u32, sizes[1] as u32] {
        file.write_all(&word.to_ne_bytes())?;
    }
    file.write_all(header)?;
    file.write_all(packet)
}

/// The link header of LINKTYPE_LINUX_SLL2, out of what the kernel says about a packet (packet(7), struct sockaddr_ll).
fn sll2_header(from: &SockAddr) -> [u8; 20] {
    // SAFETY: an address from a packet socket is a sockaddr_ll, and SockAddr's storage is aligned for each of them.
    let link = unsafe { &*from.as_ptr().cast::<libc::sockaddr_ll>() };
    let mut header = [0; 20];
    header[0..2].copy_from_slice(&link.sll_protocol.to_ne_bytes());
    header[4..8].copy_from_slice(&(link.sll_ifindex as u32).to_be_bytes());
    header[8..10].copy_from_slice(&link.sll_hatype.to_be_bytes());
    header[10] = link.sll_pkttype;
    header[11] = link.sll_halen;
    header[12..20].copy_from_slice(&link.sll_addr);
    header
}
