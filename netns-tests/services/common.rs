//! What the scenarios share: three servers with the same daemons behind the gateway, by one of the methods, and what each
//! cluster has to bear: a server killed under load, brought back, drained.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use super::load::{Load, Sample, answered, shares};
use super::watch::{Begun, Change, Watch};
use super::wire::{Protocol, Strangers, Wire};
use crate::gateway::{Gateway, Setup};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::one_way::bare;
use crate::process::eventually;
use crate::servers::{VIPS, address, endpoints};

/// How servers are checked. Daemons that make a process for each connection, on a machine with other things to do, may need
/// far longer than usual to answer; a dead one refuses at once, so that the timeout does not count for how soon it is found.
const TIMES: &str = "interval = \"200ms\", fall = 2, timeout = \"2s\", initial = \"down\"";
/// `fall` intervals and a probe's time later.
const FOUND_WITHIN: Duration = Duration::from_millis(2 * 200 + 200);
/// For a machine on which others run as well.
const MARGIN: Duration = Duration::from_millis(100);
/// Flows are told so much later than they begin, at most; a little is added for a busy machine.
const WATCH_LAG: Duration = Duration::from_millis(50 + 50);

/// How the gateway forwards to the servers.
#[derive(Clone, Copy, PartialEq)]
pub enum Method {
    Nat,
    Direct,
    Tunnel,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Nat => "nat",
            Method::Direct => "direct",
            Method::Tunnel => "tunnel",
        }
    }

    /// Three of them. By a tunnel they may be anywhere.
    pub fn servers(self) -> [&'static str; 3] {
        match self {
            Method::Nat | Method::Direct => ["rs1", "rs2", "rs3"],
            Method::Tunnel => ["rs1", "rs2", "rs4"],
        }
    }

    /// The addresses on which a server's daemons listen: its own, at which it is checked, and the services' where clients'
    /// packets arrive with these.
    pub fn addresses(self, server: &str) -> Vec<&'static str> {
        let own = address(server);
        match self {
            Method::Nat => own.to_vec(),
            Method::Direct | Method::Tunnel => own.into_iter().chain(VIPS.map(bare)).collect(),
        }
    }

    /// Sets the servers up, all at a time.
    fn serve(self, lab: &Lab) -> Result<()> {
        let setup: Vec<&str> = match self {
            Method::Nat => return Ok(()),
            _ => [self.name()].into_iter().chain(VIPS.map(bare)).collect(),
        };
        lab.serve_all(&self.servers(), &setup)
    }
}

/// A service of the cluster.
pub struct Service {
    pub name: &'static str,
    /// `None`: all ports.
    pub port: Option<u16>,
    pub protocol: &'static str,
    /// The keys of its check besides the times. `{lab}` is the lab's directory.
    pub check: &'static str,
    /// Further lines of its table.
    pub keys: &'static str,
}

impl Service {
    /// For IPv4 and for IPv6.
    fn names(&self) -> [String; 2] {
        ["", "6"].map(|family| format!("{}{family}", self.name))
    }
}

/// What a scenario is made of.
pub struct Plan {
    /// The programs that it uses.
    pub needs: &'static [&'static str],
    pub services: Vec<Service>,
    /// How clients ask, each from a connection of its own.
    pub protocols: fn(&Lab, Method) -> Result<Vec<Protocol>>,
    /// Starts a server's daemons, without waiting for them.
    pub start: fn(&Lab, Method, &str) -> Result<()>,
    /// What else the cluster has to do while all of its servers work.
    pub healthy: fn(&Cluster<'_>) -> Result<()>,
}

/// Runs the scenario of a service by one method.
pub fn run(plan: &Plan, method: Method) {
    scenario(plan.needs, |lab| {
        let begin = Instant::now();
        let step = |what: &str| eprintln!("{:5.1} s: {what}", begin.elapsed().as_secs_f64());
        let cluster = Cluster::up(lab, plan, method)?;
        step("all servers are up");
        let outcome = cluster.work(&step);
        outcome.with_context(|| format!("servers changed: {}", cluster.watch.told()))
    });
}

pub fn vips() -> [IpAddr; 2] {
    VIPS.map(|vip| bare(vip).parse().expect("an address"))
}

/// Runs a daemon on a node until the lab goes. The daemon and all that it starts are alone in a process namespace, whose
/// first process dies with this one, and with that everything in it, whatever it thinks of signals.
pub fn daemon(lab: &Lab, node: &str, name: &str, words: &[&str]) -> Result<()> {
    // The first process must be one that changes no user: that would take away that it dies with its parent.
    let name = format!("{name}-{node}");
    let alone = ["unshare", "--pid", "--fork", "--kill-child", "--", "sh", "-c", "\"$@\"; exit", &name];
    lab.keep(node, &name, &[&alone, words].concat())
}

/// Lets a node's daemons fail to resolve names at once: some look up whoever connects, and would wait for a server that
/// nobody reaches from the lab.
pub fn without_dns(lab: &Lab, node: &str) -> Result<()> {
    let resolvers = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    for resolver in resolvers.lines().filter_map(|line| line.strip_prefix("nameserver ")) {
        // One on the loopback device refuses by itself.
        let Ok(resolver) = resolver.trim().parse::<IpAddr>() else { continue };
        if !resolver.is_loopback() {
            lab.sh(node, &format!("ip route replace unreachable {resolver}"))?;
        }
    }
    Ok(())
}

/// A file of a node's daemon, in a directory of its own.
pub fn write_file(lab: &Lab, node: &str, name: &str, content: &str) -> Result<String> {
    let directory = lab.path(node);
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(name);
    std::fs::write(&path, content)?;
    utf8(&path)
}

pub fn utf8(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path in UTF-8")?.to_string())
}

/// The cluster, all of its servers up.
pub struct Cluster<'a> {
    pub lab: &'a Lab,
    pub method: Method,
    pub gateway: Rc<Gateway>,
    pub protocols: Vec<Protocol>,
    pub strangers: Strangers,
    plan: &'a Plan,
    watch: Watch,
}

/// A client's connection that stays open.
pub struct Held {
    protocol: Protocol,
    wire: Wire,
    server: String,
}

impl Held {
    /// Asks again on the same connection.
    fn goes_on(&mut self) -> Result<()> {
        let Held { protocol, wire, server } = self;
        let again = (protocol.ask)(wire).with_context(|| format!("{} on {server}", protocol.name))?;
        ensure!(again == *server, "{}: {again} answers for {server}", protocol.name);
        Ok(())
    }
}

impl<'a> Cluster<'a> {
    fn up(lab: &'a Lab, plan: &'a Plan, method: Method) -> Result<Cluster<'a>> {
        method.serve(lab)?;
        strangers_live_at_the_client(lab)?;
        let protocols = (plan.protocols)(lab, method)?;
        for server in method.servers() {
            (plan.start)(lab, method, server)?;
        }
        let gateway = Setup::new(services(lab, plan, method)).start(lab)?;
        let watch = Watch::start(lab, &gateway)?;
        method.servers().iter().try_for_each(|server| wait_for_daemons(lab, method, &protocols, server))?;
        let up = || gateway.gatun(&["server", "list", "--json"]).is_ok_and(|list| all_up(&list.stdout, plan));
        eventually("all servers are up", PATIENCE, up)?;
        Ok(Cluster { lab, method, gateway, protocols, strangers: Strangers::default(), plan, watch })
    }

    fn work(&self, step: &dyn Fn(&str)) -> Result<()> {
        (self.plan.healthy)(self)?;
        step("the service does what it is for");
        let load = Load::start(self.lab, &self.protocols, &vips(), &self.strangers)?;
        self.all_serve(&load)?;
        step("every server has its share");
        let held = self.hold()?;
        step("every server has a client that stays");
        self.killed_and_back(&load, held)?;
        step("a server was killed and came back");
        self.drained(&load)?;
        step("another one was drained");
        Ok(())
    }

    /// Opens a connection for each protocol, address and server.
    fn hold(&self) -> Result<Vec<Held>> {
        let mut held = Vec::new();
        for protocol in &self.protocols {
            for to in vips() {
                let servers = self.method.servers();
                held.extend(
                    servers.map(|server| self.hold_at(protocol, to, server)).into_iter().collect::<Result<Vec<_>>>()?,
                );
            }
        }
        Ok(held)
    }

    fn hold_at(&self, protocol: &Protocol, to: IpAddr, server: &str) -> Result<Held> {
        // Others take their turns meanwhile.
        for _ in 0..100 {
            let from = self.strangers.source(protocol, to);
            let mut wire = self.lab.inside("client", || protocol.open(from, to))??;
            if (protocol.ask)(&mut wire)? == server {
                return Ok(Held { protocol: protocol.clone(), wire, server: server.to_string() });
            }
        }
        anyhow::bail!("{} at {to}: none of a hundred connections came to {server}", protocol.name)
    }

    /// A client's connections come to one server, another client's to another one perhaps: to all of them in turn.
    pub fn stays(&self, protocol: &Protocol) -> Result<()> {
        for to in vips() {
            let mut servers = BTreeSet::new();
            for _ in self.method.servers() {
                let from = self.strangers.next(to);
                let ask = || self.lab.inside("client", || protocol.ask_once(Some(from), to).1)?;
                let answers = [ask()?, ask()?, ask()?];
                ensure!(answers[1..] == [&*answers[0]; 2], "{from} came to several servers: {answers:?}");
                servers.extend(answers);
            }
            ensure!(servers.len() == 3, "{to}: three clients came to {servers:?}");
        }
        Ok(())
    }

    /// Every server has its share of the load, and no question fails.
    fn all_serve(&self, load: &Load) -> Result<()> {
        let begin = SystemTime::now();
        // Of thirty answers to the slowest client each server gave about ten.
        self.all_answer(load, begin, 30)?;
        let samples = load.since(begin);
        no_failure(&samples)?;
        for (service, servers) in shares(&samples) {
            let fair = servers.values().sum::<usize>() / 3;
            let close = |share: &usize| share.abs_diff(fair) <= 2 + fair / 5;
            ensure!(servers.len() == 3 && servers.values().all(close), "{service}: {servers:?}");
        }
        Ok(())
    }

    /// The second server's daemons are killed: whoever is not on it does not notice, and nobody new is sent there. Then
    /// they are started again, and it serves again.
    fn killed_and_back(&self, load: &Load, held: Vec<Held>) -> Result<()> {
        let [_, victim, _] = self.method.servers();
        let killed = SystemTime::now();
        self.lab.end_all(&format!("-{victim} "))?;
        let down = self.changed(victim, false, killed)?;
        for change in &down {
            let took = change.at.duration_since(killed)?;
            eprintln!("        {} found {victim} down after {} ms", change.service, took.as_millis());
            ensure!(took <= FOUND_WITHIN + MARGIN, "{} found {victim} down after {took:?}", change.service);
        }
        let settled = down.iter().map(|change| change.at).max().context("a service")? + WATCH_LAG;
        self.all_answer(load, settled, 10)?;
        self.failed_on(&load.since(killed), victim)?;
        for flow in self.watch.begun()?.iter().filter(|flow| flow.server == victim) {
            let down = down.iter().find(|change| change.service == flow.service).context("another service's flow")?;
            ensure!(flow.at <= down.at + WATCH_LAG, "{victim} is down since {:?}, yet it was given {flow:?}", down.at);
        }
        for mut held in held.into_iter().filter(|held| held.server != victim) {
            held.goes_on()?;
        }
        let started = SystemTime::now();
        (self.plan.start)(self.lab, self.method, victim)?;
        self.changed(victim, true, started)?;
        no_failure(&load.since(settled))?;
        self.all_serve(load)
    }

    /// Waits until every service has found this server up or down since then.
    fn changed(&self, server: &str, is_up: bool, since: SystemTime) -> Result<Vec<Change>> {
        let changes = || -> Result<Vec<Change>> {
            let mut changes = self.watch.changes()?;
            changes.retain(|change| change.server == server && change.is_up == is_up && change.at >= since);
            Ok(changes)
        };
        let all = self.plan.services.len() * VIPS.len();
        let what = format!("{server} is found {}", if is_up { "up" } else { "down" });
        eventually(&what, PATIENCE, || changes().is_ok_and(|changes| changes.len() >= all))
            .with_context(|| format!("{:?}", changes()))?;
        changes()
    }

    /// Waits for so many answers to each client's questions since then.
    fn all_answer(&self, load: &Load, since: SystemTime, count: usize) -> Result<()> {
        let enough = || answered(&load.since(since)).into_values().filter(|answers| *answers >= count).count();
        let clients = self.protocols.len() * VIPS.len();
        eventually(&format!("{count} answers to each client"), PATIENCE, || enough() == clients)
    }

    /// The failures among these questions are all of clients that were sent to this server.
    fn failed_on(&self, samples: &[Sample], server: &str) -> Result<()> {
        // What happened last may not have been told yet.
        std::thread::sleep(WATCH_LAG);
        let flows = self.watch.begun()?;
        for sample in samples.iter().filter(|sample| sample.outcome.is_err()) {
            let theirs = Begun::of(sample, &flows);
            ensure!(theirs.is_some_and(|flow| flow.server == server), "{sample:?} failed, of flow {theirs:?}");
        }
        Ok(())
    }

    /// The third server is drained: nobody new is sent there, who is there stays.
    fn drained(&self, load: &Load) -> Result<()> {
        let [.., leaving] = self.method.servers();
        let mut held = Vec::new();
        for protocol in &self.protocols {
            for to in vips() {
                held.push(self.hold_at(protocol, to, leaving)?);
            }
        }
        for service in self.plan.services.iter().flat_map(Service::names) {
            self.gateway.gatun(&["server", "drain", &service, leaving])?.success()?;
        }
        let drained = SystemTime::now();
        self.all_answer(load, drained, 10)?;
        let samples = load.since(drained);
        no_failure(&samples)?;
        // Of UDP an old flow may go on in the samples.
        let flows = self.watch.begun()?;
        let there = flows.iter().find(|flow| flow.server == leaving && flow.at > drained + WATCH_LAG);
        ensure!(there.is_none(), "{leaving} is drained since {drained:?}: {there:?}");
        held.iter_mut().try_for_each(Held::goes_on)
    }
}

/// Whether all servers are up in `gatun server list --json`.
fn all_up(list: &str, plan: &Plan) -> bool {
    let up = |line: &&str| serde_json::from_str(line).is_ok_and(|server: serde_json::Value| server["state"] == "up");
    list.lines().filter(up).count() == plan.services.len() * VIPS.len() * 3
}

/// Waits until a server's daemons answer on the server itself, on each of their addresses.
fn wait_for_daemons(lab: &Lab, method: Method, protocols: &[Protocol], server: &str) -> Result<()> {
    for protocol in protocols {
        for to in method.addresses(server) {
            let to: IpAddr = to.parse()?;
            let ask = || lab.inside(server, || protocol.ask_once(None, to).1);
            let answers = || matches!(ask(), Ok(Ok(name)) if name == server);
            eventually("it answers", PATIENCE, answers).with_context(|| {
                format!("{} on {server} at {to}: {:?}", protocol.name, ask().and_then(|answer| answer))
            })?;
        }
    }
    Ok(())
}

/// Any address of the strangers' networks is the client's.
fn strangers_live_at_the_client(lab: &Lab) -> Result<()> {
    let [v4, v6] = Strangers::NETWORKS;
    lab.sh(
        "client",
        &format!(
            "ip route add local {v4} dev lo; ip route add local {v6} dev lo; sysctl -qw net.ipv6.ip_nonlocal_bind=1"
        ),
    )?;
    lab.sh("gw", &format!("ip route add {v4} via 198.51.100.2; ip route add {v6} via 2001:db8:1::2"))?;
    lab.sh("router", &format!("ip route add {v4} via 192.0.2.2; ip route add {v6} via 2001:db8:2::2")).map(drop)
}

fn no_failure(samples: &[Sample]) -> Result<()> {
    let failed: Vec<&Sample> = samples.iter().filter(|sample| sample.outcome.is_err()).collect();
    ensure!(failed.is_empty(), "{} of {} failed, the first: {:?}", failed.len(), samples.len(), failed[0]);
    Ok(())
}

/// The services' tables, for IPv4 and for IPv6, over the method's three servers.
fn services(lab: &Lab, plan: &Plan, method: Method) -> String {
    let mut tables = String::new();
    for service in &plan.services {
        let Service { protocol, keys, .. } = service;
        let port = service.port.map_or("*".to_string(), |port| port.to_string());
        let check = service.check.replace("{lab}", &lab.directory.to_string_lossy());
        for (family, name) in service.names().iter().enumerate() {
            write!(
                tables,
                "\n[[service]]\nname = \"{name}\"\nlisten = \"{}:{port}\"\nprotocol = \"{protocol}\"\n\
                 method = \"{}\"\nscheduler = \"rr\"\ncheck = {{ {check}, {TIMES} }}\n{keys}",
                VIPS[family],
                method.name()
            )
            .expect("a String takes everything");
            for server in method.servers() {
                let endpoint = match service.port {
                    Some(port) => endpoints(&[server], family, port).remove(0),
                    None => address(server)[family].to_string(),
                };
                write!(tables, "\n  [[service.server]]\n  name = \"{server}\"\n  address = \"{endpoint}\"\n")
                    .expect("a String takes everything");
            }
        }
    }
    tables
}
