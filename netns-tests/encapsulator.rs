//! A gateway's end of a tunnel, made by hand for the tests of real servers: packets that the kernel of `gw` routes to a TUN
//! device go wrapped to a real server. It has nothing in common with gatun's own: the kernel writes the outer headers.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::Lab;

const DEVICE: &str = "handmade";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    Ipip,
    Gue(u16),
}

/// How the kernel hands over what the client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// As a link without a wire does: the sum of the pseudo header.
    Partial,
    Complete,
}

/// Dropping it takes the device away.
pub struct Encapsulator {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Encapsulator {
    /// From now on `gw` sends what is for `vips` to one of `servers`, by the client's port. `mtu` is what the device takes.
    pub fn start(
        lab: &Lab,
        tunnel: Tunnel,
        checksums: Checksums,
        servers: &[&str],
        vips: &[&str],
        mtu: u32,
    ) -> Result<Encapsulator> {
        Encapsulator::with(lab, tunnel, checksums, servers, vips, mtu, false)
    }

    /// The same, but its packets may be fragmented on their way.
    pub fn fragmenting(
        lab: &Lab,
        tunnel: Tunnel,
        checksums: Checksums,
        servers: &[&str],
        vips: &[&str],
        mtu: u32,
    ) -> Result<Encapsulator> {
        Encapsulator::with(lab, tunnel, checksums, servers, vips, mtu, true)
    }

    fn with(
        lab: &Lab,
        tunnel: Tunnel,
        checksums: Checksums,
        servers: &[&str],
        vips: &[&str],
        mtu: u32,
        fragments: bool,
    ) -> Result<Encapsulator> {
        let servers = servers.iter().map(|address| address.parse()).collect::<Result<Vec<IpAddr>, _>>()?;
        let (device, sockets) = lab.inside("gw", || -> Result<_> {
            Ok((open_tun(checksums)?, servers.iter().map(|to| Wrapper::new(tunnel, *to)).collect::<Result<Vec<_>>>()?))
        })??;
        if fragments {
            sockets.iter().try_for_each(Wrapper::allow_fragments)?;
        }
        lab.sh(
            "gw",
            &format!(
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ip link set {DEVICE} mtu {mtu} up"
            ),
        )?;
        for vip in vips {
            lab.sh("gw", &format!("ip route replace {} dev {DEVICE}", vip.trim_matches(['[', ']'])))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || forward(device, &sockets, &stopped));
        Ok(Encapsulator { stop, thread: Some(thread) })
    }
}

impl Drop for Encapsulator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn forward(mut device: File, servers: &[Wrapper], stop: &AtomicBool) {
    let mut buffer = vec![0; 70_000];
    while !stop.load(Ordering::Relaxed) {
        // The virtio header comes first.
        let Ok(len) = device.read(&mut buffer) else {
            std::thread::sleep(std::time::Duration::from_micros(200));
            continue;
        };
        let packet = &buffer[10.min(len)..len];
        let ports = match packet.first().map(|byte| byte >> 4) {
            Some(4) => 20,
            // Router solicitations and the like are the kernel's of `gw`, not a client's.
            Some(6) if packet.get(24) != Some(&0xff) => 40,
            _ => continue,
        };
        // Clients' ports are even as a rule.
        let port = packet.get(ports + 1).map_or(0, |low| low / 2);
        // What does not fit is lost, as in any network.
        let _ = servers[usize::from(port) % servers.len()].send(packet);
    }
}

/// The way to one server.
pub struct Wrapper {
    tunnel: Tunnel,
    to: IpAddr,
    /// For IPv4 and for IPv6 inside.
    sockets: [Socket; 2],
}

impl Wrapper {
    /// To be called inside the namespace that it shall send from.
    pub fn new(tunnel: Tunnel, to: IpAddr) -> Result<Wrapper> {
        let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = |protocol: i32| match tunnel {
            Tunnel::Ipip => Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))),
            Tunnel::Gue(_) => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)),
        };
        Ok(Wrapper { tunnel, to, sockets: [socket(4)?, socket(41)?] })
    }

    fn allow_fragments(&self) -> Result<()> {
        for socket in &self.sockets {
            let value = libc::IP_PMTUDISC_DONT;
            // SAFETY: `value` is an int that lives through the call, and its size is passed with it.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::IPPROTO_IP,
                    libc::IP_MTU_DISCOVER,
                    (&raw const value).cast(),
                    size_of_val(&value) as libc::socklen_t,
                )
            };
            ensure!(result == 0, "IP_MTU_DISCOVER: {}", std::io::Error::last_os_error());
        }
        Ok(())
    }

    pub fn send(&self, packet: &[u8]) -> Result<()> {
        let v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
        let socket = &self.sockets[usize::from(v6)];
        match self.tunnel {
            Tunnel::Ipip => socket.send_to(packet, &SocketAddr::new(self.to, 0).into())?,
            Tunnel::Gue(port) => {
                // Version 0, no options, the protocol of what follows, no flags (draft-ietf-intarea-gue section 3.1).
                let header = [0, if v6 { 41 } else { 4 }, 0, 0];
                socket.send_to(&[&header, packet].concat(), &SocketAddr::new(self.to, port).into())?
            }
        };
        Ok(())
    }
}

fn open_tun(checksums: Checksums) -> Result<File> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
    const TUN_F_CSUM: libc::c_ulong = 1;
    let file = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid ifreq. The requests read and write one ifreq, or take a number.
    let done = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        let offloads = if checksums == Checksums::Partial { TUN_F_CSUM } else { 0 };
        libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) == 0
            && libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, offloads) == 0
            && libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) == 0
    };
    ensure!(done, "the TUN device: {}", std::io::Error::last_os_error());
    Ok(file)
}
