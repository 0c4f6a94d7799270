//! The lab of one requirement: hosts inside, hosts outside, and a masquerade for each family between them.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};

use super::wire::{Seen, Wire};
use crate::gateway::{Gateway, Setup};
use crate::lab::{Lab, scenario_on};
use crate::support::packet::{Build, Transport, echo, tcp, udp};

/// Addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    fn pick(self, v4: &str, v6: &str, number: u8, port: u16) -> SocketAddr {
        let text = if self == Family::V4 { format!("{v4}{number}") } else { format!("{v6}{number}") };
        let ip: IpAddr = text.parse().expect("an address by its family and number");
        (ip, port).into()
    }

    /// A host inside that the test plays, from 1 to [`PLAYED`].
    pub fn inside(self, number: u8, port: u16) -> SocketAddr {
        self.pick("10.40.0.", "fd40::", 100 + number, port)
    }

    /// A host outside that the test plays, from 1 to [`PLAYED`].
    pub fn outside(self, number: u8, port: u16) -> SocketAddr {
        self.pick("198.51.100.", "2001:db8:1::", 100 + number, port)
    }

    /// Somebody far away.
    pub fn router(self) -> SocketAddr {
        self.pick("192.0.2.", "2001:db8:9::", 1, 0)
    }

    /// An address of the pool, from 0 on; there are as many as the requirement's configuration says.
    pub fn pool(self, number: u8) -> SocketAddr {
        self.pick("203.0.113.", "2001:db8:f::", 100 + number, 0)
    }

    pub fn is_v4(self) -> bool {
        self == Family::V4
    }
}

/// Hosts that are played on each side.
const PLAYED: u8 = 12;
/// The last ones send what nobody else does, see [`Net::settle`].
const MARKER: u8 = PLAYED;
/// The MAC addresses of the gateway's two sides (scripts/lab.d/topologies.sh).
const LAN: [u8; 6] = [0x02, 0x00, 0x0a, 0x28, 0x00, 0x01];
const WAN: [u8; 6] = [0x02, 0x00, 0xc6, 0x33, 0x64, 0x01];

/// What is configured: a masquerade `lan` for IPv4 and one `lan6` for IPv6, with one address each.
pub struct Nat {
    pool: u8,
    masquerade: String,
    tables: String,
    timeouts: String,
    /// Lines of `[gateway]`.
    gateway: String,
}

impl Nat {
    pub fn new() -> Nat {
        Nat {
            pool: 1,
            masquerade: String::new(),
            tables: String::new(),
            timeouts: String::new(),
            gateway: String::new(),
        }
    }

    /// So many addresses in each pool.
    pub fn pool(mut self, addresses: u8) -> Nat {
        self.pool = addresses;
        self
    }

    /// A further line of both masquerades.
    pub fn with(mut self, line: &str) -> Nat {
        self.masquerade += &format!("{line}\n");
        self
    }

    /// Further tables.
    pub fn tables(mut self, tables: &str) -> Nat {
        self.tables += &format!("{tables}\n");
        self
    }

    /// Timeouts: `udp = "2s"`.
    pub fn timeouts(mut self, timeouts: &str) -> Nat {
        self.timeouts = format!("timeouts = {{ {timeouts} }}");
        self
    }

    /// One packet worker, which has all ports to itself: where they are counted, and where nothing may come, so that a packet
    /// which is sent later is done later.
    pub fn one_worker(mut self) -> Nat {
        self.gateway += "queues = 1";
        self
    }

    fn setup(&self) -> Setup {
        let pool = |family: Family| -> Vec<String> {
            (0..self.pool).map(|number| format!("\"{}\"", family.pool(number).ip())).collect()
        };
        let masquerade = |name: &str, from: &str, family: Family| {
            let to = pool(family).join(", ");
            format!("[[masquerade]]\nname = \"{name}\"\nfrom = [\"{from}\"]\nto = [{to}]\n{}", self.masquerade)
        };
        let (lan, lan6) = (masquerade("lan", "10.40.0.0/24", Family::V4), masquerade("lan6", "fd40::/64", Family::V6));
        Setup::new(format!("{}\n{lan}\n{lan6}", self.tables)).wan().gateway(&self.gateway).conntrack(&self.timeouts)
    }
}

/// One requirement: a lab, the gateway, and what has to hold.
pub fn requirement(nat: Nat, body: impl FnOnce(&Net<'_>) -> Result<()>) {
    requirement_with(&[], nat, body);
}

/// The same, with programs that it needs.
pub fn requirement_with(needs: &[&str], nat: Nat, body: impl FnOnce(&Net<'_>) -> Result<()>) {
    scenario_on("masquerade", needs, |lab| body(&Net::new(lab, &nat)?));
}

pub struct Net<'a> {
    pub lab: &'a Lab,
    /// Without the kernel's NAT in its place.
    gateway: Option<Rc<Gateway>>,
    pub inside: Wire,
    pub outside: Wire,
    markers: Cell<u32>,
}

impl<'a> Net<'a> {
    fn new(lab: &'a Lab, nat: &Nat) -> Result<Net<'a>> {
        let mut neighbours = String::new();
        for family in BOTH {
            for number in 1..=PLAYED {
                // A MAC address that nobody has: the bridges flood it, and no kernel takes it.
                for (address, bridge) in [(family.inside(number, 0), "lan"), (family.outside(number, 0), "wan")] {
                    neighbours += &format!("neigh add {} lladdr 02:00:00:00:00:99 dev {bridge}\n", address.ip());
                }
            }
        }
        let file = lab.path("neighbours");
        std::fs::write(&file, neighbours)?;
        lab.run("gw", &["ip", "-batch", file.to_str().context("a path in UTF-8")?])?.success()?;
        let gateway = if std::env::var("GATUN_RFC_AGAINST").as_deref() == Ok("nftables") {
            kernel_nat(lab, nat)?;
            None
        } else {
            Some(nat.setup().start(lab)?)
        };
        let inside = Wire::open(&lab.netns("in1"), LAN)?;
        let outside = Wire::open(&lab.netns("out1"), WAN)?;
        Ok(Net { lab, gateway, inside, outside, markers: Cell::new(0) })
    }

    pub fn gateway(&self) -> Result<&Gateway> {
        self.gateway.as_deref().context("not of the kernel's NAT")
    }

    /// Sends a packet from inside; it has to come out translated, and right. Answers with it.
    pub fn out(&self, packet: &Build) -> Result<Seen> {
        self.inside.send(packet.bytes())?;
        let protocol = protocol_of(packet);
        let seen = self.outside.expect(&format!("from {} to {}", packet.src, packet.dst), |seen| {
            seen.decoded.protocol == protocol
                && seen.to().ip() == packet.dst.ip()
                && seen.payload() == packet.payload
                && (seen.icmp().is_some() || seen.to().port() == packet.dst.port())
        })?;
        ensure!(seen.from().ip() != packet.src.ip(), "not translated: {seen:?}");
        ensure!(seen.checksums_are_right(), "wrong checksums: {seen:?}");
        Ok(seen)
    }

    /// The same, of which only the outside address is of interest.
    pub fn mapped(&self, packet: &Build) -> Result<SocketAddr> {
        Ok(self.out(packet)?.from())
    }

    /// Sends a packet from outside; it has to come to this host inside, and right. Answers with it.
    pub fn back(&self, packet: &Build, to: SocketAddr) -> Result<Seen> {
        self.outside.send(packet.bytes())?;
        let protocol = protocol_of(packet);
        let seen = self.inside.expect(&format!("from {} to {} for {to}", packet.src, packet.dst), |seen| {
            seen.decoded.protocol == protocol && seen.to() == to && seen.payload() == packet.payload
        })?;
        ensure!(seen.checksums_are_right(), "wrong checksums: {seen:?}");
        Ok(seen)
    }

    /// Sends a packet from outside; nothing of it may come inside.
    pub fn filtered(&self, packet: &Build) -> Result<()> {
        self.outside.send(packet.bytes())?;
        self.settle()?;
        let is = |seen: &Seen| seen.decoded.protocol == protocol_of(packet) && seen.payload() == packet.payload;
        self.inside.refute(&format!("from {} to {} comes in", packet.src, packet.dst), is)
    }

    /// Waits until packets that are sent now have gone through in both directions: with one worker, what was sent before has.
    pub fn settle(&self) -> Result<()> {
        let marker = format!("marker {}", self.markers.replace(self.markers.get() + 1));
        let (from, to) = (Family::V4.inside(MARKER, 7), Family::V4.outside(MARKER, 7));
        let out = self.mapped(&udp(from, to).payload(&marker))?;
        self.back(&udp(to, out).payload(&marker), from).map(drop)
    }
}

fn protocol_of(packet: &Build) -> u8 {
    match packet.transport {
        Transport::Tcp { .. } => 6,
        Transport::Udp { .. } => 17,
        Transport::Icmp(..) => {
            if packet.src.is_ipv4() {
                1
            } else {
                58
            }
        }
        Transport::Other(protocol) => protocol,
    }
}

/// What has ports, or an identifier, and may open a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opener {
    Udp,
    Tcp,
    /// An echo request; the source's port is its identifier.
    Echo,
}

impl Opener {
    pub fn packet(self, from: SocketAddr, to: SocketAddr) -> Build {
        match self {
            Opener::Udp => udp(from, to).payload("out"),
            Opener::Tcp => tcp(from, to).syn(),
            Opener::Echo => echo(from, to, from.port(), 1),
        }
    }
}

/// The kernel's NAT in gatun's place.
fn kernel_nat(lab: &Lab, nat: &Nat) -> Result<()> {
    let mut rules = String::from("flush ruleset\n");
    for (family, name, from) in [(Family::V4, "ip", "10.40.0.0/24"), (Family::V6, "ip6", "fd40::/64")] {
        let pool: Vec<String> = (0..nat.pool).map(|n| family.pool(n).ip().to_string()).collect();
        rules += &format!(
            "table {name} nat {{\n chain post {{\n  type nat hook postrouting priority srcnat;\n  \
             {name} saddr {from} oifname \"wan\" snat to {}\n }}\n}}\n",
            if pool.len() == 1 { pool[0].clone() } else { format!("{}-{}", pool[0], pool[pool.len() - 1]) }
        );
    }
    let file = lab.path("rules.nft");
    std::fs::write(&file, rules)?;
    lab.sh("gw", &format!("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; nft -f {}", file.display()))
        .map(drop)
}
