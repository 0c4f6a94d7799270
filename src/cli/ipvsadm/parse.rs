//! From words to a [`Command`]. What is wrong is told in ipvsadm's words.
//!
//! Options are taken one after the other, as the original does: that a port is copied from the service to the server, or
//! that a port has a name, presupposes that the service was named before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::command::{
    Checksum, Columns, Command, Endpoint, Flags, Forward, Key, List, Listed, Mask, Persistence, Ports, Protocol, Real,
    Role, Timeouts, Tunnel, Virtual,
};
use super::legal::{Given, Kind, Verb};
use super::names::Names;
use super::popt::{Opt, Reader};

/// 31 days.
const MAX_TIMEOUT: i64 = 86_400 * 31;
const DEFAULT_PERSISTENCE: u32 = 360;
const DEFAULT_SCHEDULER: &str = "wlc";
/// `IP_VS_SCHEDNAME_MAXLEN` and `IP_VS_PENAME_MAXLEN` (include/uapi/linux/ip_vs.h), less the terminating zero.
const MAX_NAME: usize = 15;

/// Why there is no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    pub message: String,
    /// The exit code.
    pub code: u8,
}

impl Complaint {
    fn usage(message: impl Into<String>) -> Complaint {
        Complaint { message: message.into(), code: 2 }
    }

    /// popt does not understand it, or the first option is no command.
    pub fn try_help(program: &str) -> Complaint {
        let message = format!("Try `{program} -h' or '{program} --help' for more information.");
        Complaint { message, code: 255 }
    }
}

/// What the words behind the program's name say.
pub fn parse(program: &str, words: &[String], names: &dyn Names) -> Result<Command, Complaint> {
    let mut reader = Reader::new(words);
    let first = reader.next().ok().flatten();
    let (opt, argument) = first.ok_or_else(|| Complaint::try_help(program))?;
    let mut role = Role::Master;
    let verb = match opt {
        Opt::Help => return Ok(Command::Help),
        Opt::Version => return Ok(Command::Version),
        Opt::AddService => Verb::Add,
        Opt::EditService => Verb::Edit,
        Opt::DeleteService => Verb::Delete,
        Opt::Clear => Verb::Flush,
        Opt::List => Verb::List,
        Opt::Zero => Verb::Zero,
        Opt::AddServer => Verb::AddServer,
        Opt::EditServer => Verb::EditServer,
        Opt::DeleteServer => Verb::DeleteServer,
        Opt::Set => Verb::Set,
        Opt::Restore => Verb::Restore,
        Opt::Save => Verb::Save,
        Opt::StartDaemon => {
            role = self::role(argument, "illegal start-daemon parameter specified")?;
            Verb::StartDaemon
        }
        Opt::StopDaemon => {
            role = self::role(argument, "illegal start_daemon specified")?;
            Verb::StopDaemon
        }
        _ => return Err(Complaint::try_help(program)),
    };
    let mut entry = Entry::new(names);
    loop {
        match reader.next() {
            Ok(Some((opt, argument))) => entry.take(opt, argument.unwrap_or_default(), argument.is_some(), &reader)?,
            Ok(None) => break,
            Err(fault) => {
                let message = format!("{}: {}", reader.last_word(), fault.message());
                return Err(Complaint { message, code: 255 });
            }
        }
    }
    let mut rest = reader.rest();
    let mut timeouts = Timeouts { tcp: 0, tcp_fin: 0, udp: 0 };
    if verb == Verb::Set {
        let [tcp, tcp_fin, udp, more @ ..] = rest else {
            return Err(Complaint::usage("--set option requires 3 timeout values"));
        };
        timeouts = Timeouts { tcp: timeout(tcp, 0)?, tcp_fin: timeout(tcp_fin, 0)?, udp: timeout(udp, 0)? };
        rest = more;
    }
    if let Some(word) = rest.first() {
        return Err(Complaint::usage(format!("unexpected argument {word}")));
    }
    entry.read_scheduler_flags()?;
    entry.given.check(verb).map_err(Complaint::usage)?;
    match verb {
        Verb::Add => entry.service().map(Command::Add),
        Verb::Edit => entry.service().map(Command::Edit),
        Verb::Delete => Ok(Command::Delete(entry.key())),
        Verb::Flush => Ok(Command::Clear),
        Verb::List => entry.list().map(Command::List),
        Verb::AddServer => entry.server().map(|server| Command::AddServer(entry.key(), server)),
        Verb::EditServer => entry.server().map(|server| Command::EditServer(entry.key(), server)),
        Verb::DeleteServer => Ok(Command::DeleteServer(entry.key(), entry.at)),
        Verb::Set => Ok(Command::SetTimeouts(timeouts)),
        Verb::StartDaemon => Ok(Command::StartDaemon(role)),
        Verb::StopDaemon => Ok(Command::StopDaemon(role)),
        Verb::Restore => Ok(Command::Restore),
        Verb::Save => Ok(Command::Save { numeric: entry.given.has(Kind::Numeric) }),
        Verb::Zero => Ok(Command::Zero(entry.given.has(Kind::Service).then(|| entry.key()))),
    }
}

fn role(argument: Option<&str>, wrong: &str) -> Result<Role, Complaint> {
    match argument {
        Some("master") => Ok(Role::Master),
        Some("backup") => Ok(Role::Backup),
        _ => Err(Complaint::usage(wrong)),
    }
}

/// How a tunnel was asked for; together they make a [`Tunnel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TunnelType {
    Ipip,
    Gue,
    Gre,
}

/// How packets go to the server, but for the tunnel's own options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Masquerade,
    Route,
    Tunnel,
}

/// What the options said so far.
struct Entry<'a> {
    names: &'a dyn Names,
    given: Given,
    /// 0: none.
    mark: u32,
    is_v6: bool,
    protocol: Option<Protocol>,
    address: IpAddr,
    ports: Ports,
    scheduler: String,
    flag_words: String,
    flags: Flags,
    timeout: u32,
    mask: Mask,
    engine: Option<String>,
    at: Endpoint,
    way: Way,
    weight: u32,
    upper: u32,
    lower: u32,
    tunnel: TunnelType,
    tunnel_port: u16,
}

impl<'a> Entry<'a> {
    fn new(names: &'a dyn Names) -> Entry<'a> {
        Entry {
            names,
            given: Given::default(),
            mark: 0,
            is_v6: false,
            protocol: None,
            address: Ipv4Addr::UNSPECIFIED.into(),
            ports: Ports::ALL,
            scheduler: String::new(),
            flag_words: String::new(),
            flags: Flags::default(),
            timeout: 0,
            mask: Mask::whole(false),
            engine: None,
            at: Endpoint { address: Ipv4Addr::UNSPECIFIED.into(), port: 0 },
            way: Way::Route,
            weight: 1,
            upper: 0,
            lower: 0,
            tunnel: TunnelType::Ipip,
            tunnel_port: 0,
        }
    }

    fn take(&mut self, opt: Opt, argument: &str, has_argument: bool, reader: &Reader<'_>) -> Result<(), Complaint> {
        if let Some(kind) = Kind::of(opt)
            && !self.given.add(kind)
        {
            return Err(Complaint::usage(format!("multiple '{}' options specified", kind.name())));
        }
        match opt {
            Opt::TcpService => self.take_service(Protocol::Tcp, argument)?,
            Opt::UdpService => self.take_service(Protocol::Udp, argument)?,
            Opt::SctpService => self.take_service(Protocol::Sctp, argument)?,
            Opt::FwmarkService => {
                self.is_v6 = false;
                self.protocol = Some(Protocol::Tcp);
                let mark = integer(argument).and_then(|mark| u32::try_from(mark).ok()).filter(|mark| *mark > 0);
                let wrong = || Complaint::usage(format!("invalid fwmark value `{argument}' specified"));
                self.mark = mark.ok_or_else(wrong)?;
            }
            Opt::Ipv6 if self.mark == 0 => return Err(Complaint::usage("-6 used before -f\n")),
            Opt::Ipv6 => {
                self.is_v6 = true;
                self.mask = Mask::V6(128);
            }
            Opt::Scheduler => self.scheduler = super::names::cut(argument.to_owned(), MAX_NAME),
            Opt::Persistent if has_argument => self.timeout = timeout(argument, 1)?,
            Opt::Persistent => self.timeout = DEFAULT_PERSISTENCE,
            Opt::Netmask => self.take_netmask(argument)?,
            Opt::RealServer => self.take_server(argument)?,
            Opt::Masquerading => self.way = Way::Masquerade,
            Opt::Ipip => self.way = Way::Tunnel,
            Opt::Gatewaying => self.way = Way::Route,
            Opt::Weight => self.weight = number(argument, 0, 65535, "illegal weight specified")?,
            Opt::UpperThreshold => self.upper = number(argument, 0, i32::MAX.into(), "illegal u_threshold specified")?,
            Opt::LowerThreshold => self.lower = number(argument, 0, i32::MAX.into(), "illegal l_threshold specified")?,
            Opt::Pe => self.engine = Some(super::names::cut(argument.to_owned(), MAX_NAME)),
            Opt::SchedFlags => self.flag_words = super::names::cut(argument.to_owned(), 127),
            Opt::TunType => {
                self.tunnel = match argument {
                    "ipip" => TunnelType::Ipip,
                    "gue" => TunnelType::Gue,
                    "gre" => TunnelType::Gre,
                    _ => return Err(Complaint::usage("illegal tunnel type specified")),
                }
            }
            Opt::TunPort => {
                let port = number(argument, 1, 65535, "illegal tunnel port specified")?;
                self.tunnel_port = u16::try_from(port).unwrap_or_default();
            }
            // Of the daemons only the grammar is known here.
            Opt::Syncid => drop(number(argument, 0, 255, "illegal syncid specified")?),
            Opt::McastPort => drop(number(argument, 1, 65535, "illegal mcast-port specified")?),
            Opt::McastTtl => drop(number(argument, 1, 255, "illegal mcast-ttl specified")?),
            Opt::SyncMaxlen => drop(number(argument, 1, 65535 - 20 - 8, "illegal sync-maxlen specified")?),
            Opt::McastGroup => check_group(argument)?,
            // What was given is all that these say.
            Opt::Numeric
            | Opt::Connection
            | Opt::McastInterface
            | Opt::Timeout
            | Opt::Daemon
            | Opt::Stats
            | Opt::Rate => {}
            Opt::Thresholds | Opt::PersistentConn | Opt::Nosort | Opt::Sort | Opt::Exact | Opt::Ops | Opt::TunInfo => {}
            Opt::TunNocsum | Opt::TunCsum | Opt::TunRemcsum => {}
            // A second command.
            _ => return Err(Complaint::usage(format!("invalid option `{}'", reader.last_word()))),
        }
        Ok(())
    }

    fn take_service(&mut self, protocol: Protocol, text: &str) -> Result<(), Complaint> {
        self.protocol = Some(protocol);
        let wrong = || Complaint::usage("illegal virtual server address[:port] specified");
        let (address, ports) = self.place(text).ok_or_else(wrong)?;
        self.address = address;
        self.is_v6 = address.is_ipv6();
        if self.is_v6 {
            self.mask = Mask::V6(128);
        }
        self.ports = ports.unwrap_or(self.ports);
        Ok(())
    }

    fn take_server(&mut self, text: &str) -> Result<(), Complaint> {
        let wrong = || Complaint::usage("illegal real server address[:port] specified");
        let (address, ports) = self.place(text).ok_or_else(wrong)?;
        let ports = ports.unwrap_or(self.ports);
        self.at = Endpoint { address, port: ports.first };
        Ok(())
    }

    fn take_netmask(&mut self, text: &str) -> Result<(), Complaint> {
        if self.is_v6 {
            let prefix = atoi(text);
            let prefix = u8::try_from(prefix).ok().filter(|prefix| (1..=128).contains(prefix));
            self.mask = Mask::V6(prefix.ok_or_else(|| Complaint::usage("illegal ipv6 netmask specified"))?);
            return Ok(());
        }
        let wrong = || Complaint::usage("illegal virtual server persistent mask specified");
        self.mask = Mask::V4(inet_aton(text).or_else(|| self.names.host(text)).ok_or_else(wrong)?);
        Ok(())
    }

    /// `host`, `host:port`, `[ipv6]:port`, an IPv6 address alone. The port is `None` where none stands.
    fn place(&self, text: &str) -> Option<(IpAddr, Option<Ports>)> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                (host, Some(port.strip_prefix(':')?))
            }
            None => (text, None),
        };
        if let Ok(address) = host.parse::<Ipv6Addr>() {
            return Some((address.into(), self.maybe(port)?));
        }
        let (host, port) = host.rsplit_once(':').map_or((host, None), |(host, port)| (host, Some(port)));
        let address = inet_aton(host).or_else(|| self.names.host(host))?;
        Some((address.into(), self.maybe(port)?))
    }

    /// The outer `None`: it stands there, and is none.
    #[expect(clippy::option_option, reason = "whether there is a port, and whether it makes sense")]
    fn maybe(&self, text: Option<&str>) -> Option<Option<Ports>> {
        match text {
            Some(text) => self.ports(text).map(Some),
            None => Some(None),
        }
    }

    fn ports(&self, text: &str) -> Option<Ports> {
        let port = |text: &str| integer(text).and_then(|port| u16::try_from(port).ok());
        if let Some(port) = port(text) {
            return Some(Ports::single(port));
        }
        if let Some((first, last)) = text.split_once('-')
            && let (Some(first), Some(last)) = (port(first), port(last))
            && 0 < first
            && first < last
        {
            return Some(Ports { first, last });
        }
        self.names.port(text, self.protocol?).map(Ports::single)
    }

    /// At the end, since they depend on the scheduler.
    fn read_scheduler_flags(&mut self) -> Result<(), Complaint> {
        let scheduler = if self.scheduler.is_empty() { DEFAULT_SCHEDULER } else { &self.scheduler };
        for word in self.flag_words.split(',').filter(|word| !word.is_empty()) {
            let (number, of) = match word {
                "flag-1" => (0, None),
                "flag-2" => (1, None),
                "flag-3" => (2, None),
                "sh-fallback" => (0, Some("sh")),
                "sh-port" => (1, Some("sh")),
                "mh-fallback" => (0, Some("mh")),
                "mh-port" => (1, Some("mh")),
                _ => return Err(Complaint::usage(format!("invalid scheduler flag `{word}'"))),
            };
            if of.is_some_and(|of| of != scheduler) {
                return Err(Complaint::usage(format!("incompatible scheduler flag `{word}'")));
            }
            self.flags.0[number] = true;
        }
        Ok(())
    }

    fn key(&self) -> Key {
        match self.mark {
            0 => Key::of(self.protocol.unwrap_or(Protocol::Tcp), self.address, self.ports),
            mark => Key::Mark { mark, is_v6: self.is_v6 },
        }
    }

    fn service(&self) -> Result<Virtual, Complaint> {
        let is_persistent = self.given.has(Kind::Persistent);
        if self.mark == 0 && self.ports == Ports::ALL && !is_persistent {
            return Err(Complaint::usage("Zero port specified for non-persistent service"));
        }
        let one_packet = self.given.has(Kind::OnePacket);
        if one_packet && self.mark == 0 && self.protocol != Some(Protocol::Udp) {
            return Err(Complaint::usage("One-Packet Scheduling is only for UDP virtual services"));
        }
        let scheduler = if self.scheduler.is_empty() { DEFAULT_SCHEDULER } else { &self.scheduler };
        Ok(Virtual {
            key: self.key(),
            scheduler: scheduler.to_owned(),
            flags: self.flags,
            persistence: is_persistent.then_some(Persistence { timeout: self.timeout, mask: self.mask }),
            persistence_engine: self.engine.clone(),
            one_packet,
        })
    }

    fn server(&self) -> Result<Real, Complaint> {
        let mut at = self.at;
        // Without translation the packet keeps its port.
        if self.mark == 0 && self.way != Way::Masquerade {
            at.port = self.ports.first;
        }
        if at.address.is_ipv6() != self.is_v6 && self.way != Way::Tunnel {
            return Err(Complaint::usage("Different address family is allowed only for tunneling servers"));
        }
        let of_tunnels = [Kind::TunType, Kind::TunPort, Kind::TunNocsum, Kind::TunCsum, Kind::TunRemcsum];
        if self.given.has_any(&of_tunnels) && self.way != Way::Tunnel {
            return Err(Complaint::usage("Tunnel options conflict with forward method"));
        }
        let tunnel = self.tunnel();
        self.given.check_tunnel(tunnel).map_err(Complaint::usage)?;
        let forward = match self.way {
            Way::Masquerade => Forward::Masquerade,
            Way::Route => Forward::Route,
            Way::Tunnel => Forward::Tunnel(tunnel),
        };
        Ok(Real { at, forward, weight: self.weight, upper: self.upper, lower: self.lower })
    }

    fn tunnel(&self) -> Tunnel {
        let checksum = match () {
            () if self.given.has(Kind::TunRemcsum) => Checksum::Remote,
            () if self.given.has(Kind::TunCsum) => Checksum::Yes,
            () => Checksum::No,
        };
        match self.tunnel {
            TunnelType::Ipip => Tunnel::Ipip,
            TunnelType::Gue => Tunnel::Gue { port: self.tunnel_port, checksum },
            TunnelType::Gre => Tunnel::Gre { checksum },
        }
    }

    fn list(&self) -> Result<List, Complaint> {
        use Kind::{Connection, Daemon, PersistentConn, Rate, Stats, Thresholds, Timeout};
        let given = &self.given;
        if given.has_any(&[Connection, Timeout, Daemon]) && given.has_any(&[Stats, Rate, Thresholds])
            || given.has_any(&[Timeout, Daemon]) && given.has(PersistentConn)
        {
            return Err(Complaint::usage("options conflicts in the list command"));
        }
        let what = match () {
            () if given.has(Connection) => Listed::Connections,
            () if given.has(Kind::Service) => Listed::One(self.key()),
            () if given.has(Timeout) => Listed::Timeouts,
            () if given.has(Daemon) => Listed::Daemons,
            () => Listed::Services,
        };
        let columns = [
            (Stats, Columns::Stats),
            (Rate, Columns::Rate),
            (Thresholds, Columns::Thresholds),
            (PersistentConn, Columns::PersistentConnections),
            (Kind::TunInfo, Columns::Tunnel),
        ];
        Ok(List {
            what,
            numeric: given.has(Kind::Numeric),
            columns: columns.iter().find(|(kind, _)| given.has(*kind)).map_or(Columns::Usual, |(_, columns)| *columns),
            exact: given.has(Kind::Exact),
            unsorted: given.has(Kind::Nosort),
            with_engines: given.has(PersistentConn),
        })
    }
}

fn timeout(text: &str, least: i64) -> Result<u32, Complaint> {
    number(text, least, MAX_TIMEOUT, &format!("invalid timeout value `{text}' specified"))
}

fn number(text: &str, least: i64, most: i64, wrong: &str) -> Result<u32, Complaint> {
    let found = integer(text).filter(|number| (least..=most).contains(number));
    found.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| Complaint::usage(wrong))
}

/// A whole number as strtol(3) takes it: blanks in front, a sign.
fn integer(text: &str) -> Option<i64> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// As atoi(3): what stands at the beginning, else 0.
fn atoi(text: &str) -> i64 {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let sign = usize::from(text.starts_with(['+', '-']));
    let end = text.bytes().skip(sign).take_while(u8::is_ascii_digit).count() + sign;
    text.get(..end).and_then(integer).unwrap_or(0)
}

/// As inet_aton(3): one to four numbers, the last of which fills what is left; decimal, octal (`010`) or hexadecimal.
fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let text = text.split(|c: char| c.is_ascii_whitespace()).next()?;
    let parts: Vec<u32> = text.split('.').map(inet_number).collect::<Option<_>>()?;
    let (last, bytes) = parts.split_last()?;
    if bytes.len() > 3 || bytes.iter().any(|byte| *byte > 255) {
        return None;
    }
    let room = 8 * (4 - bytes.len());
    if room < 32 && *last >= 1 << room {
        return None;
    }
    let high = bytes.iter().zip([24, 16, 8]).map(|(byte, shift)| byte << shift).sum::<u32>();
    Some(Ipv4Addr::from(high | last))
}

fn inet_number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // `from_str_radix` takes a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

fn check_group(text: &str) -> Result<(), Complaint> {
    let (family, is_group) = if text.contains(':') {
        ("IPv6", text.parse::<Ipv6Addr>().is_ok_and(|group| group.is_multicast()))
    } else {
        ("IPv4", text.parse::<Ipv4Addr>().is_ok_and(|group| group.is_multicast()))
    };
    if is_group { Ok(()) } else { Err(Complaint::usage(format!("invalid {family} mcast-group `{text}'"))) }
}
