//! From commands to edits of the gateway's configuration.
//!
//! # Theory of operation
//!
//! A [`Plan`] begins with the table as it is. Each command is checked against the table as it would be after those before it,
//! changes it, and adds its edits to the list. So the commands of a restore are one list of edits, which the gateway takes as
//! one change, and every one of them gets the answer that the original would have given it.
//!
//! A service is found by protocol, address and port, whatever its name is: those of the configuration file are changed as
//! well. What ipvsadm has no options for (checks, groups, a sorry server) stays as it is. So does `fullnat`, which is
//! masquerading to ipvsadm: `-m` in a service by `fullnat` means that.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::command::{
    Checksum, Command, Endpoint, Forward, Key, Mask, Persistence, Ports, Protocol, Real, Timeouts, Tunnel, Virtual,
};
use super::table::{Counts, Server, Service, Table, gue_checksum, prefix};
use crate::control::api::Edit;
use crate::service::SchedulerKind;

const NO_SERVICE: &str = "No such service";
const NOT_DEFINED: &str = "Service not defined";
const NO_DESTINATION: &str = "No such destination";
/// What strerror(3) says of ERANGE: what Linux answers when the lower threshold is above the upper one.
const OUT_OF_RANGE: &str = "Numerical result out of range";

type Keys = Map<String, Value>;

/// The table as it will be, and the edits that bring it there.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub table: Table,
    pub edits: Vec<Edit>,
}

impl Plan {
    pub fn new(table: Table) -> Plan {
        Plan { table, edits: Vec::new() }
    }

    /// Adds what `command` does. One that changes no rule does nothing here.
    ///
    /// # Errors
    /// Why it is not done, in ipvsadm's words where it has some; nothing is changed then.
    pub fn add(&mut self, command: &Command) -> Result<(), String> {
        match command {
            Command::Add(service) => self.add_service(service),
            Command::Edit(service) => self.edit_service(service),
            Command::Delete(key) => self.delete_service(key),
            Command::Clear => {
                if !self.table.services.is_empty() {
                    self.table.services.clear();
                    self.edits.push(Edit::ClearServices {});
                }
                Ok(())
            }
            Command::AddServer(key, server) => self.add_server(key, server),
            Command::EditServer(key, server) => self.edit_server(key, server),
            Command::DeleteServer(key, at) => self.delete_server(key, *at),
            Command::SetTimeouts(timeouts) => {
                self.set_timeouts(*timeouts);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn add_service(&mut self, service: &Virtual) -> Result<(), String> {
        can_serve(&service.key)?;
        if self.table.find(&service.key).is_some() {
            return Err("Service already exists".to_owned());
        }
        let settings = supported(service)?;
        let name = self.free_name(&service.key);
        let Key::Address { protocol, address, ports, .. } = service.key else { return Ok(()) };
        let mut keys = Keys::new();
        keys.insert("listen".to_owned(), listen(address, ports).into());
        keys.insert("protocol".to_owned(), protocol.word().into());
        keys.extend(service_keys(&settings).into_iter().filter(|(_, value)| !value.is_null()));
        self.edits.push(Edit::AddService { service: name.clone(), keys });
        self.table.services.push(Service { name, settings, servers: Vec::new(), is_fullnat: false });
        Ok(())
    }

    fn edit_service(&mut self, service: &Virtual) -> Result<(), String> {
        can_serve(&service.key)?;
        let before = self.table.find(&service.key).ok_or(NO_SERVICE)?;
        let name = before.name.clone();
        let settings = supported(service)?;
        let keys = changed(service_keys(&before.settings), service_keys(&settings));
        if keys.is_empty() {
            return Ok(());
        }
        self.edits.push(Edit::SetService { service: name.clone(), keys });
        for line in self.lines(&name) {
            line.settings = Virtual { key: line.settings.key, ..settings.clone() };
        }
        Ok(())
    }

    fn delete_service(&mut self, key: &Key) -> Result<(), String> {
        let name = self.table.find(key).ok_or(NO_SERVICE)?.name.clone();
        self.table.services.retain(|service| service.settings.key != *key);
        // One of the gateway's services with two protocols keeps the other.
        let other = self.lines(&name).next().map(|other| other.settings.key.protocol());
        self.edits.push(match other {
            Some(protocol) => {
                let mut keys = Keys::new();
                keys.insert("protocol".to_owned(), protocol.word().into());
                Edit::SetService { service: name, keys }
            }
            None => Edit::RemoveService { service: name },
        });
        Ok(())
    }

    fn add_server(&mut self, key: &Key, server: &Real) -> Result<(), String> {
        can_serve(key)?;
        let server = &normal(key, *server);
        let service = self.table.find(key).ok_or(NOT_DEFINED)?;
        can_be_used(server)?;
        if service.find(server.at).is_some() {
            return Err("Destination already exists".to_owned());
        }
        let (service, is_fullnat) = (service.name.clone(), service.is_fullnat);
        let address = address_of(key, server);
        let mut keys = Keys::new();
        keys.insert("address".to_owned(), address.clone().into());
        keys.extend(server_keys(server, is_fullnat).into_iter().filter(|(_, value)| !value.is_null()));
        self.edits.push(Edit::AddServer { service: service.clone(), keys });
        let is_fullnat = is_fullnat && server.forward == Forward::Masquerade;
        let added = Server { name: address, settings: *server, counts: Counts::default(), is_fullnat };
        for line in self.lines(&service) {
            line.servers.push(added.clone());
        }
        Ok(())
    }

    fn edit_server(&mut self, key: &Key, server: &Real) -> Result<(), String> {
        can_serve(key)?;
        let server = &normal(key, *server);
        let service = self.table.find(key).ok_or(NOT_DEFINED)?;
        can_be_used(server)?;
        let before = service.find(server.at).ok_or(NO_DESTINATION)?;
        let (service, name, is_fullnat) = (service.name.clone(), before.name.clone(), service.is_fullnat);
        let mut keys = changed(server_keys(&before.settings, is_fullnat), server_keys(server, is_fullnat));
        if keys.is_empty() {
            return Ok(());
        }
        // A server that is not translated any more has no port of its own.
        if server.forward != Forward::Masquerade && before.settings.forward == Forward::Masquerade {
            keys.insert("name".to_owned(), name.clone().into());
            keys.insert("address".to_owned(), address_of(key, server).into());
        }
        self.edits.push(Edit::SetServer { service: service.clone(), server: name.clone(), keys });
        for line in self.lines(&service) {
            for found in line.servers.iter_mut().filter(|found| found.name == name) {
                found.settings = *server;
            }
        }
        Ok(())
    }

    fn delete_server(&mut self, key: &Key, at: Endpoint) -> Result<(), String> {
        can_serve(key)?;
        let service = self.table.find(key).ok_or(NOT_DEFINED)?;
        let at = Endpoint { port: if key.port() == 0 { 0 } else { at.port }, ..at };
        let found = service.find(at).ok_or(NO_DESTINATION)?;
        let (service, name) = (service.name.clone(), found.name.clone());
        for line in self.lines(&service) {
            line.servers.retain(|server| server.name != name);
        }
        self.edits.push(Edit::RemoveServer { service, server: name });
        Ok(())
    }

    fn set_timeouts(&mut self, timeouts: Timeouts) {
        let ours = &mut self.table.timeouts;
        let values = [
            ("tcp_established", timeouts.tcp, &mut ours.tcp),
            ("tcp_fin_wait", timeouts.tcp_fin, &mut ours.tcp_fin),
            ("udp", timeouts.udp, &mut ours.udp),
        ];
        let mut keys = Keys::new();
        for (key, seconds, now) in values.into_iter().filter(|(_, seconds, now)| *seconds != 0 && *seconds != **now) {
            *now = seconds;
            keys.insert(key.to_owned(), duration(seconds));
        }
        if !keys.is_empty() {
            let mut table = Keys::new();
            table.insert("timeouts".to_owned(), keys.into());
            self.edits.push(Edit::SetConntrack { keys: table });
        }
    }

    /// The lines of one of the gateway's services.
    fn lines<'a>(&'a mut self, name: &'a str) -> impl Iterator<Item = &'a mut Service> {
        self.table.services.iter_mut().filter(move |service| service.name == name)
    }

    /// `ipvs:tcp:203.0.113.10:80`, or with a number behind where a service is called so already.
    fn free_name(&self, key: &Key) -> String {
        let Key::Address { protocol, address, ports, .. } = key else { return String::new() };
        let usual = format!("ipvs:{}:{}", protocol.word(), listen(*address, *ports));
        let is_free = |name: &String| self.table.services.iter().all(|service| service.name != *name);
        let others = (2..).map(|number| format!("{usual}#{number}"));
        std::iter::once(usual.clone()).chain(others).find(is_free).unwrap_or(usual)
    }
}

/// Refuses what no service of gatun can be.
fn can_serve(key: &Key) -> Result<(), String> {
    match key {
        Key::Mark { .. } => Err("gatun sees no packet marks, so there are no -f services: use one -t or -u service for each \
                                 address and port, or services with one `group` in gatun's configuration, which share their \
                                 persistence"
            .to_owned()),
        Key::Address { protocol: Protocol::Sctp, .. } => {
            Err("gatun does not forward SCTP yet; there are -t and -u services".to_owned())
        }
        Key::Address { .. } => Ok(()),
    }
}

/// The settings as gatun has them.
fn supported(service: &Virtual) -> Result<Virtual, String> {
    let known = SchedulerKind::ALL.iter().any(|kind| kind.word() == service.scheduler);
    if !known || service.persistence_engine.is_some() {
        return Err("Scheduler or persistence engine not found".to_owned());
    }
    if let Some(Persistence { mask: Mask::V4(mask), .. }) = service.persistence
        && prefix(mask).is_none()
    {
        return Err(format!(
            "{mask} is no mask of 1 to 32 leading bits, which is all that gatun keeps clients together by"
        ));
    }
    let mut settings = service.clone();
    // The kernel keeps flags that mean nothing to the scheduler; nothing comes of them.
    if !has_flags(&service.scheduler) {
        settings.flags = super::command::Flags::default();
    }
    settings.flags.0[2] = false;
    Ok(settings)
}

fn has_flags(scheduler: &str) -> bool {
    matches!(scheduler, "sh" | "mh")
}

fn can_be_used(server: &Real) -> Result<(), String> {
    if server.lower > server.upper {
        return Err(OUT_OF_RANGE.to_owned());
    }
    match server.forward {
        Forward::Tunnel(Tunnel::Gre { .. }) => Err("gatun has no GRE tunnels; --tun-type is ipip or gue".to_owned()),
        Forward::Tunnel(Tunnel::Gue { checksum: Checksum::Remote, .. }) => {
            Err("gatun has no remote checksum offload for GUE; leave --tun-remcsum out".to_owned())
        }
        _ => Ok(()),
    }
}

/// A server of an all-ports service has no port of its own, and whether GUE has a checksum follows from the family.
fn normal(key: &Key, mut server: Real) -> Real {
    if key.port() == 0 {
        server.at.port = 0;
    }
    if let Forward::Tunnel(Tunnel::Gue { checksum, .. }) = &mut server.forward
        && *checksum != Checksum::Remote
    {
        *checksum = gue_checksum(server.at.address);
    }
    server
}

fn listen(address: IpAddr, ports: Ports) -> String {
    let ports = if ports == Ports::ALL { "*".to_owned() } else { ports.to_string() };
    if address.is_ipv6() { format!("[{address}]:{ports}") } else { format!("{address}:{ports}") }
}

/// What ipvsadm has options for; `null` where it is at its default.
fn service_keys(service: &Virtual) -> Keys {
    let fallback_and_port = [(service.flags.0[0], "fallback"), (service.flags.0[1], "port")];
    let flags: Vec<&str> = fallback_and_port.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect();
    let mut keys = Keys::new();
    keys.insert("scheduler".to_owned(), service.scheduler.clone().into());
    keys.insert("scheduler_flags".to_owned(), if flags.is_empty() { Value::Null } else { json!(flags) });
    keys.insert("persistence".to_owned(), service.persistence.map_or(Value::Null, persistence));
    keys.insert("one_packet".to_owned(), if service.one_packet { true.into() } else { Value::Null });
    keys
}

fn persistence(persistence: Persistence) -> Value {
    let timeout = duration(persistence.timeout);
    match persistence.mask {
        Mask::V4(mask) => json!({ "timeout": timeout, "netmask": prefix(mask).unwrap_or(32) }),
        Mask::V6(prefix) => json!({ "timeout": timeout, "prefix": prefix }),
    }
}

fn duration(seconds: u32) -> Value {
    format!("{seconds}s").into()
}

/// Without the address; `null` where a setting is at its default. `is_fullnat`: of a service by `fullnat`.
fn server_keys(server: &Real, is_fullnat: bool) -> Keys {
    let (method, tunnel) = match server.forward {
        Forward::Masquerade if is_fullnat => ("fullnat", Value::Null),
        Forward::Masquerade => ("nat", Value::Null),
        Forward::Route => ("direct", Value::Null),
        Forward::Tunnel(Tunnel::Gue { port, .. }) => ("tunnel", format!("gue:{port}").into()),
        Forward::Tunnel(_) => ("tunnel", "ipip".into()),
    };
    let limit = |connections: u32| if connections == 0 { Value::Null } else { connections.into() };
    let mut keys = Keys::new();
    keys.insert("method".to_owned(), method.into());
    keys.insert("tunnel".to_owned(), tunnel);
    keys.insert("weight".to_owned(), server.weight.into());
    keys.insert("max_connections".to_owned(), limit(server.upper));
    keys.insert("min_connections".to_owned(), limit(server.lower));
    keys
}

/// Those of `after` that differ.
fn changed(before: Keys, after: Keys) -> Keys {
    after.into_iter().filter(|(key, value)| before.get(key) != Some(value)).collect()
}

/// `10.20.0.11:8080`; without a port where it is the client's that counts.
fn address_of(key: &Key, server: &Real) -> String {
    let Endpoint { address, port } = server.at;
    match (address, server.forward) {
        (IpAddr::V4(_), Forward::Masquerade) if key.port() != 0 => format!("{address}:{port}"),
        (IpAddr::V6(_), Forward::Masquerade) if key.port() != 0 => format!("[{address}]:{port}"),
        (IpAddr::V4(_), _) => address.to_string(),
        (IpAddr::V6(_), _) => format!("[{address}]"),
    }
}
