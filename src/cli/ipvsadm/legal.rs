//! Which options go with which command.

use super::command::Tunnel;
use super::popt::Opt;

/// The commands, by the names that messages have for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Add,
    Edit,
    Delete,
    Flush,
    List,
    AddServer,
    DeleteServer,
    EditServer,
    Set,
    StartDaemon,
    StopDaemon,
    Restore,
    Save,
    Zero,
}

impl Verb {
    const fn name(self) -> &'static str {
        match self {
            Verb::Add => "add-service",
            Verb::Edit => "edit-service",
            Verb::Delete => "delete-service",
            Verb::Flush => "flush",
            Verb::List => "list",
            Verb::AddServer => "add-server",
            Verb::DeleteServer => "delete-server",
            Verb::EditServer => "edit-server",
            Verb::Set => "set",
            Verb::StartDaemon => "start-daemon",
            Verb::StopDaemon => "stop-daemon",
            Verb::Restore => "restore",
            Verb::Save => "save",
            Verb::Zero => "zero",
        }
    }

    const fn required(self) -> &'static [Kind] {
        match self {
            Verb::Add | Verb::Edit | Verb::Delete => &[Kind::Service],
            Verb::AddServer | Verb::DeleteServer | Verb::EditServer => &[Kind::Service, Kind::Server],
            _ => &[],
        }
    }

    const fn optional(self) -> &'static [Kind] {
        use Kind::*;
        match self {
            Verb::Add | Verb::Edit => &[Scheduler, Persistent, Netmask, OnePacket, Engine, SchedulerFlags],
            Verb::AddServer | Verb::EditServer => {
                &[Forward, Weight, Upper, Lower, TunType, TunPort, TunNocsum, TunCsum, TunRemcsum]
            }
            Verb::List => &[Numeric, Stats, Rate, Thresholds, PersistentConn, Nosort, Syncid, Exact, TunInfo],
            Verb::StartDaemon => &[Mcast, Syncid, McastGroup, McastPort, McastTtl, SyncMaxlen],
            Verb::StopDaemon => &[Syncid],
            Verb::Save => &[Numeric],
            Verb::Zero => &[Service],
            Verb::Delete | Verb::DeleteServer | Verb::Flush | Verb::Set | Verb::Restore => &[],
        }
    }

    /// At most one of these.
    const fn exclusive(self) -> &'static [Kind] {
        match self {
            Verb::List => &[Kind::Connection, Kind::Service, Kind::Timeout, Kind::Daemon],
            _ => &[],
        }
    }
}

/// What an option is about. Of each kind there may be one. The order is that in which they are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Numeric,
    Connection,
    Service,
    Scheduler,
    Persistent,
    Netmask,
    Server,
    Forward,
    Weight,
    Upper,
    Lower,
    Mcast,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    Nosort,
    Syncid,
    Exact,
    OnePacket,
    Engine,
    SchedulerFlags,
    McastGroup,
    McastPort,
    McastTtl,
    SyncMaxlen,
    TunInfo,
    TunType,
    TunPort,
    TunNocsum,
    TunCsum,
    TunRemcsum,
}

#[rustfmt::skip]
const KINDS: &[(Kind, &str, &[Opt])] = &[
    (Kind::Numeric,        "numeric",           &[Opt::Numeric]),
    (Kind::Connection,     "connection",        &[Opt::Connection]),
    (Kind::Service,        "service-address",   &[Opt::TcpService, Opt::UdpService, Opt::SctpService, Opt::FwmarkService]),
    (Kind::Scheduler,      "scheduler",         &[Opt::Scheduler]),
    (Kind::Persistent,     "persistent",        &[Opt::Persistent]),
    (Kind::Netmask,        "netmask",           &[Opt::Netmask]),
    (Kind::Server,         "real-server",       &[Opt::RealServer]),
    (Kind::Forward,        "forwarding-method", &[Opt::Masquerading, Opt::Ipip, Opt::Gatewaying]),
    (Kind::Weight,         "weight",            &[Opt::Weight]),
    (Kind::Upper,          "u-threshold",       &[Opt::UpperThreshold]),
    (Kind::Lower,          "l-threshold",       &[Opt::LowerThreshold]),
    (Kind::Mcast,          "mcast-interface",   &[Opt::McastInterface]),
    (Kind::Timeout,        "timeout",           &[Opt::Timeout]),
    (Kind::Daemon,         "daemon",            &[Opt::Daemon]),
    (Kind::Stats,          "stats",             &[Opt::Stats]),
    (Kind::Rate,           "rate",              &[Opt::Rate]),
    (Kind::Thresholds,     "thresholds",        &[Opt::Thresholds]),
    (Kind::PersistentConn, "persistent-conn",   &[Opt::PersistentConn]),
    (Kind::Nosort,         "nosort",            &[Opt::Nosort]),
    (Kind::Syncid,         "syncid",            &[Opt::Syncid]),
    (Kind::Exact,          "exact",             &[Opt::Exact]),
    (Kind::OnePacket,      "ops",               &[Opt::Ops]),
    (Kind::Engine,         "pe",                &[Opt::Pe]),
    (Kind::SchedulerFlags, "sched-flags",       &[Opt::SchedFlags]),
    (Kind::McastGroup,     "mcast-group",       &[Opt::McastGroup]),
    (Kind::McastPort,      "mcast-port",        &[Opt::McastPort]),
    (Kind::McastTtl,       "mcast-ttl",         &[Opt::McastTtl]),
    (Kind::SyncMaxlen,     "sync-maxlen",       &[Opt::SyncMaxlen]),
    (Kind::TunInfo,        "tun-info",          &[Opt::TunInfo]),
    (Kind::TunType,        "tun-type",          &[Opt::TunType]),
    (Kind::TunPort,        "tun-port",          &[Opt::TunPort]),
    (Kind::TunNocsum,      "tun-nocsum",        &[Opt::TunNocsum]),
    (Kind::TunCsum,        "tun-csum",          &[Opt::TunCsum]),
    (Kind::TunRemcsum,     "tun-remcsum",       &[Opt::TunRemcsum]),
];

impl Kind {
    /// `None` for commands, and for what may be said as often as one likes.
    pub fn of(opt: Opt) -> Option<Kind> {
        KINDS.iter().find(|row| row.2.contains(&opt)).map(|row| row.0)
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|row| row.0 == self).map_or("?", |row| row.1)
    }
}

/// The kinds that were given.
#[derive(Clone, Debug, Default)]
pub struct Given(Vec<Kind>);

impl Given {
    /// Tells whether it is the first of its kind.
    pub fn add(&mut self, kind: Kind) -> bool {
        let first = !self.has(kind);
        if first {
            self.0.push(kind);
        }
        first
    }

    pub fn has(&self, kind: Kind) -> bool {
        self.0.contains(&kind)
    }

    pub fn has_any(&self, kinds: &[Kind]) -> bool {
        kinds.iter().any(|kind| self.has(*kind))
    }

    /// Checks the options of a command.
    pub fn check(&self, verb: Verb) -> Result<(), String> {
        let command = verb.name();
        let mut exclusive: Option<Kind> = None;
        for (kind, option, _) in KINDS {
            let is_required = verb.required().contains(kind);
            if !self.has(*kind) {
                if is_required {
                    return Err(format!("You need to supply the '{option}' option for the '{command}' command"));
                }
                continue;
            }
            if verb.exclusive().contains(kind) {
                if let Some(other) = exclusive {
                    let other = other.name();
                    return Err(format!(
                        "The option '{option}' conflicts with the '{other}' option in the '{command}' command"
                    ));
                }
                exclusive = Some(*kind);
            } else if !is_required && !verb.optional().contains(kind) {
                return Err(format!("Illegal '{option}' option with the '{command}' command"));
            }
        }
        Ok(())
    }

    /// Checks the options of a tunnel of this type. `gue` needs a port; a checksum is for `gue` and `gre`.
    pub fn check_tunnel(&self, tunnel: Tunnel) -> Result<(), String> {
        use Kind::{TunCsum, TunNocsum, TunPort, TunRemcsum};
        let (name, port_is_needed, checksums): (_, _, &[Kind]) = match tunnel {
            Tunnel::Ipip => ("ipip", false, &[]),
            Tunnel::Gue { .. } => ("gue", true, &[TunNocsum, TunCsum, TunRemcsum]),
            Tunnel::Gre { .. } => ("gre", false, &[TunNocsum, TunCsum]),
        };
        match (port_is_needed, self.has(TunPort)) {
            (true, false) => {
                return Err(format!("You need to supply the '{}' option for the '{name}' tunnel type", TunPort.name()));
            }
            (false, true) => return Err(format!("Illegal '{}' option with the '{name}' tunnel type", TunPort.name())),
            _ => {}
        }
        let mut first: Option<Kind> = None;
        for kind in [TunNocsum, TunCsum, TunRemcsum].into_iter().filter(|kind| self.has(*kind)) {
            if !checksums.contains(&kind) {
                return Err(format!("Illegal '{}' option with the '{name}' tunnel type", kind.name()));
            }
            if let Some(other) = first {
                let (option, other) = (kind.name(), other.name());
                return Err(format!(
                    "The option '{option}' conflicts with the '{other}' option in the '{name}' tunnel type"
                ));
            }
            first = Some(kind);
        }
        Ok(())
    }
}
