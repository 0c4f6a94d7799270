//! What the scenarios share: three servers with the same daemons behind the gateway, by one of the methods, and what each
//! cluster has to bear: a server killed under load, brought back, drained.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use super::flows::FlowWatch;
use super::load::{Load, Sample, shares};
use super::wire::{Protocol, Strangers, Wire};
use crate::gateway::{Gateway, Setup};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::one_way::bare;
use crate::process::eventually;
use crate::servers::{VIPS, address, endpoints};

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

/// A service of the cluster: its name, its port and the port's protocol, and further lines of its table.
pub struct Service {
    pub name: &'static str,
    /// `None`: all ports.
    pub port: Option<u16>,
    pub protocol: &'static str,
    pub keys: &'static str,
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
        (plan.healthy)(&cluster)?;
        step("the service does what it is for");
        let load = Load::start(lab, &cluster.protocols, &vips(), &cluster.strangers)?;
        cluster.all_serve(&load)?;
        step("every server has its share");
        let held = cluster.hold()?;
        step("every server has a client that stays");
        cluster.killed_and_back(&load, held)?;
        step("a server was killed and came back");
        cluster.drained(&load)?;
        step("another one was drained");
        Ok(())
    });
}

pub fn vips() -> [IpAddr; 2] {
    VIPS.map(|vip| bare(vip).parse().expect("an address"))
}

/// Runs a daemon on a node until the lab goes. The daemon and all that it starts are alone in a process namespace, whose
/// first process dies with this one, and with that everything in it, whatever it thinks of signals.
pub fn daemon(lab: &Lab, node: &str, name: &str, words: &[&str]) -> Result<()> {
    // The first process must be one that changes no user: that would take away that it dies with its parent.
    let alone = ["unshare", "--pid", "--fork", "--kill-child", "--", "sh", "-c", "\"$@\"; exit", name];
    lab.keep(node, &format!("{name}-{node}"), &[&alone, words].concat())
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
    flows: FlowWatch,
}

/// A client's connection that stays open.
pub struct Held {
    protocol: Protocol,
    wire: Wire,
    server: String,
}

impl<'a> Cluster<'a> {
    fn up(lab: &'a Lab, plan: &'a Plan, method: Method) -> Result<Cluster<'a>> {
        method.serve(lab)?;
        strangers_live_at_the_client(lab)?;
        let protocols = (plan.protocols)(lab, method)?;
        for server in method.servers() {
            (plan.start)(lab, method, server)?;
        }
        let gateway = Setup::new(services(plan, method, None)).start(lab)?;
        let flows = FlowWatch::start(lab, &gateway)?;
        let cluster = Cluster { lab, method, gateway, protocols, strangers: Strangers::default(), plan, flows };
        method.servers().iter().try_for_each(|server| cluster.wait_for_daemons(server))?;
        Ok(cluster)
    }

    /// Waits until a server's daemons answer on the server itself, on each of their addresses.
    fn wait_for_daemons(&self, server: &str) -> Result<()> {
        for protocol in &self.protocols {
            for to in self.method.addresses(server) {
                let to: IpAddr = to.parse()?;
                let ask = || self.lab.inside(server, || protocol.ask_once(None, to).1);
                let answers = || matches!(ask(), Ok(Ok(name)) if name == server);
                eventually("it answers", PATIENCE, answers).with_context(|| {
                    format!("{} on {server} at {to}: {:?}", protocol.name, ask().and_then(|answer| answer))
                })?;
            }
        }
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
        let expected = self.protocols.len() * 2;
        // With thirty answers from the slowest, each server has about ten of them.
        let enough = || {
            let samples = load.since(begin);
            shares(&samples).values().filter(|servers| servers.values().sum::<usize>() >= 30).count() == expected
        };
        eventually("thirty answers to each client", PATIENCE, enough)?;
        let samples = load.since(begin);
        no_failure(&samples)?;
        for (client, servers) in shares(&samples) {
            let fair = servers.values().sum::<usize>() / 3;
            let close = |share: &usize| share.abs_diff(fair) <= 2 + fair / 5;
            ensure!(servers.len() == 3 && servers.values().all(close), "{client:?}: {servers:?}");
        }
        Ok(())
    }

    /// The second server's daemons are killed: whoever is not on it does not notice, and nobody new is sent there. Then
    /// they are started again, and it serves again.
    fn killed_and_back(&self, load: &Load, held: Vec<Held>) -> Result<()> {
        let [_, victim, _] = self.method.servers();
        let killed = SystemTime::now();
        self.lab.end_all(&format!("/{victim}/"))?;
        std::thread::sleep(Duration::from_millis(1000));
        self.failed_on(&load.since(killed), victim)?;
        for mut held in held.into_iter().filter(|held| held.server != victim) {
            let again = (held.protocol.ask)(&mut held.wire);
            let again = again.with_context(|| format!("{} on {}", held.protocol.name, held.server))?;
            ensure!(again == held.server, "{}: {} answers for {}", held.protocol.name, again, held.server);
        }
        (self.plan.start)(self.lab, self.method, victim)?;
        self.wait_for_daemons(victim)?;
        self.all_serve(load)
    }

    /// The failures among these questions are all of clients that were sent to this server.
    fn failed_on(&self, samples: &[Sample], server: &str) -> Result<()> {
        std::thread::sleep(Duration::from_millis(100));
        let flows = self.flows.begun()?;
        for sample in samples.iter().filter(|sample| sample.outcome.is_err()) {
            let theirs = flows.iter().rev().find(|flow| flow.is_of(sample));
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
        self.gateway.reload(self.lab, &services(self.plan, self.method, Some(leaving)))?;
        let drained = SystemTime::now();
        let enough = || {
            shares(&load.since(drained)).values().filter(|servers| servers.values().sum::<usize>() >= 10).count()
                == self.protocols.len() * 2
        };
        eventually("ten answers to each client", PATIENCE, enough)?;
        let samples = load.since(drained);
        no_failure(&samples)?;
        let there = samples.iter().find(|sample| sample.outcome.as_deref() == Ok(leaving));
        ensure!(there.is_none(), "{leaving} is drained: {there:?}");
        for mut held in held {
            let again = (held.protocol.ask)(&mut held.wire).with_context(|| held.protocol.name)?;
            ensure!(again == leaving, "{}: {again} answers for {leaving}", held.protocol.name);
        }
        Ok(())
    }
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

/// The services' tables, for IPv4 and for IPv6, over the method's three servers; without weight for the drained one.
fn services(plan: &Plan, method: Method, drained: Option<&str>) -> String {
    let mut tables = String::new();
    for service in &plan.services {
        for (family, vip) in VIPS.iter().enumerate() {
            let Service { name, protocol, keys, .. } = service;
            let port = service.port.map_or("*".to_string(), |port| port.to_string());
            let (name, method_name) = (format!("{name}{}", ["", "6"][family]), method.name());
            write!(
                tables,
                "\n[[service]]\nname = \"{name}\"\nlisten = \"{vip}:{port}\"\nprotocol = \"{protocol}\"\n\
                 method = \"{method_name}\"\nscheduler = \"rr\"\n{keys}"
            )
            .expect("a String takes everything");
            for server in method.servers() {
                let endpoint = match service.port {
                    Some(port) => endpoints(&[server], family, port).remove(0),
                    None => address(server)[family].to_string(),
                };
                let weight = u32::from(drained != Some(server));
                write!(
                    tables,
                    "\n  [[service.server]]\n  name = \"{server}\"\n  address = \"{endpoint}\"\n  weight = {weight}\n"
                )
                .expect("a String takes everything");
            }
        }
    }
    tables
}
