//! What an ipvsadm command line says, in its own terms.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::names::Printer;

/// One invocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Help,
    Version,
    Add(Virtual),
    Edit(Virtual),
    Delete(Key),
    /// Every service goes.
    Clear,
    AddServer(Key, Real),
    EditServer(Key, Real),
    DeleteServer(Key, Endpoint),
    List(List),
    /// Commands from standard input.
    Restore,
    Save {
        numeric: bool,
    },
    /// The counters of one service, or of all.
    Zero(Option<Key>),
    SetTimeouts(Timeouts),
    StartDaemon(Role),
    StopDaemon(Role),
}

/// Transport protocols of virtual services, in the order in which they are listed (by number).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The name in lists.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }

    /// As in /etc/services and in gatun's configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    const fn option(self) -> &'static str {
        match self {
            Protocol::Tcp => "-t",
            Protocol::Udp => "-u",
            Protocol::Sctp => "--sctp-service",
        }
    }
}

/// What names a virtual service. The order is that of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Address { is_v6: bool, protocol: Protocol, address: IpAddr, ports: Ports },
    Mark { mark: u32, is_v6: bool },
}

impl Key {
    pub fn of(protocol: Protocol, address: IpAddr, ports: Ports) -> Key {
        Key::Address { is_v6: address.is_ipv6(), protocol, address, ports }
    }

    pub const fn is_v6(&self) -> bool {
        match *self {
            Key::Address { is_v6, .. } | Key::Mark { is_v6, .. } => is_v6,
        }
    }

    /// 0 for a mark and for all ports.
    pub const fn port(&self) -> u16 {
        match *self {
            Key::Address { ports, .. } => ports.first,
            Key::Mark { .. } => 0,
        }
    }

    /// A mark has none of its own; names of its ports are those of TCP.
    pub const fn protocol(&self) -> Protocol {
        match *self {
            Key::Address { protocol, .. } => protocol,
            Key::Mark { .. } => Protocol::Tcp,
        }
    }

    /// `-t 10.0.0.1:80`, `-f 1 -6`.
    pub fn options(&self, printer: &Printer<'_>) -> String {
        match *self {
            Key::Address { protocol, address, ports, .. } => {
                format!("{} {}", protocol.option(), printer.endpoint(address, ports, protocol))
            }
            Key::Mark { mark, is_v6 } => format!("-f {mark}{}", if is_v6 { " -6" } else { "" }),
        }
    }
}

/// The ports of a service. A range is gatun's own: ipvsadm knows one port, or 0 for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

impl Ports {
    pub const ALL: Ports = Ports::single(0);

    pub const fn single(port: u16) -> Ports {
        Ports { first: port, last: port }
    }
}

impl fmt::Display for Ports {
    /// `80`, `8000-8099`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Ports { first, last } if first == last => write!(f, "{first}"),
            Ports { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

/// A virtual service with its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Virtual {
    pub key: Key,
    pub scheduler: String,
    pub flags: Flags,
    pub persistence: Option<Persistence>,
    pub persistence_engine: Option<String>,
    pub one_packet: bool,
}

/// The three flags of a scheduler. With `sh` and `mh` the first is `fallback`, the second `port`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub [bool; 3]);

impl Flags {
    pub fn any(self) -> bool {
        self != Flags::default()
    }

    /// `sh-fallback,sh-port`; `flag-3`.
    pub fn words(self, scheduler: &str) -> String {
        let words: &[&str] = match scheduler {
            "sh" => &["sh-fallback", "sh-port"],
            "mh" => &["mh-fallback", "mh-port"],
            _ => &["flag-1", "flag-2", "flag-3"],
        };
        let set = words.iter().zip(self.0).filter(|(_, set)| *set).map(|(word, _)| *word);
        set.collect::<Vec<_>>().join(",")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// Seconds.
    pub timeout: u32,
    pub mask: Mask,
}

/// Which bits of a client's address name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    V4(Ipv4Addr),
    /// A prefix length.
    V6(u8),
}

impl Mask {
    /// One client, one address.
    pub const fn whole(is_v6: bool) -> Mask {
        if is_v6 { Mask::V6(128) } else { Mask::V4(Ipv4Addr::BROADCAST) }
    }

    pub fn is_whole(self) -> bool {
        self == Mask::whole(matches!(self, Mask::V6(_)))
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mask::V4(mask) => mask.fmt(f),
            Mask::V6(prefix) => prefix.fmt(f),
        }
    }
}

/// What names a real server within its service. The order is that of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
}

/// A real server with its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Real {
    pub at: Endpoint,
    pub forward: Forward,
    pub weight: u32,
    /// Connections at which it takes no more; 0: no limit.
    pub upper: u32,
    /// Connections below which it takes new ones again; 0: three quarters of the upper threshold.
    pub lower: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    Masquerade,
    Route,
    Tunnel(Tunnel),
}

impl Forward {
    /// The word in lists.
    pub const fn name(self) -> &'static str {
        match self {
            Forward::Masquerade => "Masq",
            Forward::Route => "Route",
            Forward::Tunnel(_) => "Tunnel",
        }
    }

    const fn option(self) -> &'static str {
        match self {
            Forward::Masquerade => "-m",
            Forward::Route => "-g",
            Forward::Tunnel(_) => "-i",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    Ipip,
    Gue { port: u16, checksum: Checksum },
    Gre { checksum: Checksum },
}

impl fmt::Display for Tunnel {
    /// As in lists with `--tun-info`: `ipip`, `gue:6080:+c`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tunnel::Ipip => f.write_str("ipip"),
            Tunnel::Gue { port, checksum } => write!(f, "gue:{port}:{}", checksum.mark()),
            Tunnel::Gre { checksum } => write!(f, "gre:{}", checksum.mark()),
        }
    }
}

/// What a tunnel's outer header says of its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    No,
    Yes,
    Remote,
}

impl Checksum {
    const fn mark(self) -> &'static str {
        match self {
            Checksum::No => "-c",
            Checksum::Yes => "+c",
            Checksum::Remote => "r+c",
        }
    }

    const fn option(self) -> &'static str {
        match self {
            Checksum::No => "--tun-nocsum",
            Checksum::Yes => "--tun-csum",
            Checksum::Remote => "--tun-remcsum",
        }
    }
}

/// Seconds; with `--set`, 0 leaves a value as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp: u32,
    pub tcp_fin: u32,
    pub udp: u32,
}

impl Timeouts {
    /// Those of IPVS (Linux, `net/netfilter/ipvs/ip_vs_proto_tcp.c`, `ip_vs_proto_udp.c`).
    pub const IPVS: Timeouts = Timeouts { tcp: 900, tcp_fin: 120, udp: 300 };
}

/// What a daemon of connection synchronisation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Master,
    Backup,
}

/// What `-L` is to show, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct List {
    pub what: Listed,
    pub numeric: bool,
    pub columns: Columns,
    /// Numbers in full.
    pub exact: bool,
    pub unsorted: bool,
    /// With `--persistent-conn`, whatever the columns are: connections show their persistence engine.
    pub with_engines: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listed {
    #[default]
    Services,
    One(Key),
    Connections,
    Timeouts,
    Daemons,
}

/// Where several are asked for, the first of these counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Columns {
    Stats,
    Rate,
    Thresholds,
    PersistentConnections,
    Tunnel,
    #[default]
    Usual,
}

impl Virtual {
    /// `-t 10.0.0.1:80 -s rr -p 300 -M 255.255.255.0 -o -b flag-1`: the line of `--save` without its command.
    pub fn options(&self, printer: &Printer<'_>) -> String {
        let mut line = format!("{} -s {}", self.key.options(printer), self.scheduler);
        if let Some(Persistence { timeout, mask }) = self.persistence {
            line += &format!(" -p {timeout}");
            if !mask.is_whole() {
                line += &format!(" -M {mask}");
            }
        }
        if let Some(engine) = &self.persistence_engine {
            line += &format!(" --pe {engine}");
        }
        if self.one_packet {
            line += " -o";
        }
        if self.flags.any() {
            line += &format!(" -b {}", self.flags.words(&self.scheduler));
        }
        line
    }
}

impl Real {
    /// `-r 192.168.11.1:80 -i -w 1 --tun-type ipip`. The original's `--save` loses thresholds; its `--restore` takes them.
    pub fn options(&self, protocol: Protocol, printer: &Printer<'_>) -> String {
        let at = printer.endpoint(self.at.address, Ports::single(self.at.port), protocol);
        let mut line = format!("-r {at} {} -w {}", self.forward.option(), self.weight);
        match self.forward {
            Forward::Tunnel(Tunnel::Ipip) => line += " --tun-type ipip",
            Forward::Tunnel(Tunnel::Gue { port, checksum }) => {
                line += &format!(" --tun-type gue --tun-port {port} {}", checksum.option());
            }
            Forward::Tunnel(Tunnel::Gre { checksum }) => line += &format!(" --tun-type gre {}", checksum.option()),
            Forward::Masquerade | Forward::Route => {}
        }
        if self.upper != 0 {
            line += &format!(" -x {}", self.upper);
        }
        if self.lower != 0 {
            line += &format!(" -y {}", self.lower);
        }
        line
    }
}

impl fmt::Display for Command {
    /// The arguments, in short options and numbers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numeric = Printer::numeric();
        let key = |key: &Key| key.options(&numeric);
        let real =
            |key: &Key, real: &Real| format!("{} {}", key.options(&numeric), real.options(key.protocol(), &numeric));
        match self {
            Command::Help => f.write_str("-h"),
            Command::Version => f.write_str("-v"),
            Command::Add(service) => write!(f, "-A {}", service.options(&numeric)),
            Command::Edit(service) => write!(f, "-E {}", service.options(&numeric)),
            Command::Delete(service) => write!(f, "-D {}", key(service)),
            Command::Clear => f.write_str("-C"),
            Command::AddServer(service, server) => write!(f, "-a {}", real(service, server)),
            Command::EditServer(service, server) => write!(f, "-e {}", real(service, server)),
            Command::DeleteServer(service, Endpoint { address, port }) => {
                let at = numeric.endpoint(*address, Ports::single(*port), service.protocol());
                write!(f, "-d {} -r {at}", key(service))
            }
            Command::List(list) => list.fmt(f),
            Command::Restore => f.write_str("-R"),
            Command::Save { numeric } => f.write_str(if *numeric { "-S -n" } else { "-S" }),
            Command::Zero(None) => f.write_str("-Z"),
            Command::Zero(Some(service)) => write!(f, "-Z {}", key(service)),
            Command::SetTimeouts(Timeouts { tcp, tcp_fin, udp }) => write!(f, "--set {tcp} {tcp_fin} {udp}"),
            Command::StartDaemon(role) => write!(f, "--start-daemon {role}"),
            Command::StopDaemon(role) => write!(f, "--stop-daemon {role}"),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Master => "master",
            Role::Backup => "backup",
        })
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("-L")?;
        match self.what {
            Listed::Services => {}
            Listed::One(service) => write!(f, " {}", service.options(&Printer::numeric()))?,
            Listed::Connections => f.write_str(" -c")?,
            Listed::Timeouts => f.write_str(" --timeout")?,
            Listed::Daemons => f.write_str(" --daemon")?,
        }
        match self.columns {
            Columns::Stats => f.write_str(" --stats")?,
            Columns::Rate => f.write_str(" --rate")?,
            Columns::Thresholds => f.write_str(" --thresholds")?,
            Columns::Tunnel => f.write_str(" --tun-info")?,
            Columns::PersistentConnections | Columns::Usual => {}
        }
        let switches = [
            (self.with_engines, " --persistent-conn"),
            (self.numeric, " -n"),
            (self.exact, " --exact"),
            (self.unsorted, " --nosort"),
        ];
        switches.iter().filter(|(set, _)| *set).try_for_each(|(_, switch)| f.write_str(switch))
    }
}
