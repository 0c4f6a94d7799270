//! Who gets how much: every scheduler over three web servers, IPv4 and IPv6.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::client::{answers, answers_from, spread};
use crate::gateway::{Gateway, Setup};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::eventually;
use crate::servers::{THREE, VIPS, address, dual_service, three_nginx};

const NEEDS: [&str; 2] = ["nginx", "curl"];

fn web(scheduler: &str, servers: &[(&str, u32)]) -> String {
    dual_service(80, "tcp", scheduler, servers, 8080)
}

#[test]
fn rr() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let gateway = Setup::new(web("rr", &THREE)).start(lab)?;
        for (family, vip) in VIPS.iter().enumerate() {
            let names = answers(lab, vip, 30)?;
            ensure!(spread(&names) == BTreeMap::from([("rs1", 10), ("rs2", 10), ("rs3", 10)]), "{names:?}");
            for round in names.windows(3) {
                ensure!(BTreeSet::from_iter(round).len() == 3, "in turn, not {names:?}");
            }
            // That it was gatun who spread them: each server's ten flows stand in its table.
            for server in ["rs1", "rs2", "rs3"] {
                let flows = flows_to(&gateway, server, family)?;
                ensure!(flows == 10, "{flows} flows to {server}");
            }
        }
        Ok(())
    });
}

/// Flows of the client to a server's port 8080, by the reply tuple.
fn flows_to(gateway: &Gateway, server: &str, family: usize) -> Result<usize> {
    let server: IpAddr = address(server)[family].parse()?;
    let flows = gateway.flows(&["--proto", "tcp", "--dport", "80"])?;
    Ok(flows.iter().filter(|flow| flow.reply.src == server && flow.reply.ports.0 == 8080).count())
}

#[test]
fn wrr() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let _gateway = Setup::new(web("wrr", &[("rs1", 3), ("rs2", 2), ("rs3", 1)])).start(lab)?;
        for vip in VIPS {
            let names = answers(lab, vip, 30)?;
            ensure!(spread(&names) == BTreeMap::from([("rs1", 15), ("rs2", 10), ("rs3", 5)]), "{names:?}");
            // Interleaved: a server's share is kept in every round of the weights' sum.
            for round in names.chunks(6) {
                ensure!(spread(round) == BTreeMap::from([("rs1", 3), ("rs2", 2), ("rs3", 1)]), "{names:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn weight_zero_gets_nothing() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        for scheduler in ["rr", "wrr", "lc", "wlc", "sh", "mh"] {
            let gateway = Setup::new(web(scheduler, &[("rs1", 1), ("rs2", 0), ("rs3", 1)])).start(lab)?;
            for vip in VIPS {
                let names = answers(lab, vip, 10)?;
                ensure!(!names.iter().any(|name| name == "rs2"), "{scheduler}: {names:?}");
                if ["rr", "wrr"].contains(&scheduler) {
                    ensure!(spread(&names) == BTreeMap::from([("rs1", 5), ("rs3", 5)]), "{scheduler}: {names:?}");
                }
            }
            gateway.stop()?;
        }
        Ok(())
    });
}

/// A connection that is kept open, and who is at its other end.
struct Held {
    stream: TcpStream,
    server: String,
}

/// Opens a connection to a VIP's port 80, and asks once, so that it is established beyond doubt.
fn hold(lab: &Lab, vip: &str) -> Result<Held> {
    let to: SocketAddr = format!("{vip}:80").parse()?;
    let mut stream = lab.inside("client", || TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
    let mut answer = String::new();
    let mut buffer = [0; 1024];
    while !answer.contains("rs") || !answer.ends_with('\n') {
        let length = stream.read(&mut buffer)?;
        ensure!(length > 0, "the server closed: {answer}");
        answer.push_str(std::str::from_utf8(&buffer[..length])?);
    }
    let server = answer.lines().last().context("a body")?.to_string();
    Ok(Held { stream, server })
}

fn held_by(held: &[Held]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for connection in held {
        *counts.entry(connection.server.as_str()).or_default() += 1;
    }
    counts
}

#[test]
fn lc() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let gateway = Setup::new(web("lc", &THREE)).start(lab)?;
        for vip in VIPS {
            let mut held = (0..9).map(|_| hold(lab, vip)).collect::<Result<Vec<_>>>()?;
            ensure!(held_by(&held) == BTreeMap::from([("rs1", 3), ("rs2", 3), ("rs3", 3)]), "{:?}", held_by(&held));
            // A server whose connections have ended is the least loaded one.
            held.retain(|connection| connection.server != "rs2");
            eventually("six connections are left", PATIENCE, || established(&gateway, vip) == Some(6))?;
            held.extend((0..3).map(|_| hold(lab, vip)).collect::<Result<Vec<_>>>()?);
            ensure!(held_by(&held) == BTreeMap::from([("rs1", 3), ("rs2", 3), ("rs3", 3)]), "{:?}", held_by(&held));
        }
        Ok(())
    });
}

fn established(gateway: &Gateway, vip: &str) -> Option<usize> {
    let vip = vip.trim_matches(['[', ']']);
    gateway.flows(&["--state", "ESTABLISHED", "--dst", vip]).ok().map(|flows| flows.len())
}

#[test]
fn wlc() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let _gateway = Setup::new(web("wlc", &[("rs1", 2), ("rs2", 1), ("rs3", 1)])).start(lab)?;
        for vip in VIPS {
            let held = (0..12).map(|_| hold(lab, vip)).collect::<Result<Vec<_>>>()?;
            ensure!(held_by(&held) == BTreeMap::from([("rs1", 6), ("rs2", 3), ("rs3", 3)]), "{:?}", held_by(&held));
            ensure!(held.iter().all(|connection| connection.stream.peer_addr().is_ok()), "all of them open");
        }
        Ok(())
    });
}

/// Forty further addresses of the client, by family.
fn sources(lab: &Lab) -> Result<[Vec<String>; 2]> {
    let sources = [
        (100..140).map(|n| format!("198.51.100.{n}")).collect::<Vec<_>>(),
        (100..140).map(|n| format!("2001:db8:1::{n}")).collect::<Vec<_>>(),
    ];
    let add = |address: &String| {
        format!("ip addr add {address}/{} dev eth0", if address.contains(':') { "64 nodad" } else { "24" })
    };
    lab.sh("client", &sources.iter().flatten().map(add).collect::<Vec<_>>().join("; "))?;
    Ok(sources)
}

/// Which server each source gets; the same one at every of three connections.
fn servers_by_source(lab: &Lab, sources: &[String], vip: &str) -> Result<Vec<String>> {
    sources
        .iter()
        .map(|source| {
            let names = answers_from(lab, Some(source), vip, 3)?;
            ensure!(spread(&names).len() == 1, "{source} got {names:?}");
            Ok(names[0].clone())
        })
        .collect()
}

/// By source address: a source keeps its server, and the sources use all servers.
fn hashes_sources(scheduler: &str) {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let sources = sources(lab)?;
        let gateway = Setup::new(web(scheduler, &THREE)).start(lab)?;
        for (sources, vip) in sources.iter().zip(VIPS) {
            let before = servers_by_source(lab, sources, vip)?;
            ensure!(spread(&before).len() == 3, "{before:?}");
            // And it has nothing to do with the table of flows.
            gateway.gatun(&["conntrack", "flush"])?.success()?;
            ensure!(servers_by_source(lab, sources, vip)? == before, "another server after a flush");
        }
        Ok(())
    });
}

#[test]
fn sh() {
    hashes_sources("sh");
}

#[test]
fn mh() {
    hashes_sources("mh");
}

/// What Maglev hashing is for: when a server goes, the sources of the others stay with theirs.
#[test]
fn mh_moves_few() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let sources = sources(lab)?;
        let gateway = Setup::new(web("mh", &THREE)).start(lab)?;
        for (sources, vip) in sources.iter().zip(VIPS) {
            gateway.reload(lab, &web("mh", &THREE))?;
            let before = servers_by_source(lab, sources, vip)?;
            gateway.reload(lab, &web("mh", &[("rs1", 1), ("rs3", 1)]))?;
            let after = servers_by_source(lab, sources, vip)?;
            ensure!(!after.iter().any(|name| name == "rs2"), "{after:?}");
            let moved = before.iter().zip(&after).filter(|(b, a)| *b != "rs2" && a != b).count();
            // At most about one in three of all moves; nearly none of those whose server stayed.
            ensure!(moved <= 4, "{moved} moved whose server stayed:\n{before:?}\n{after:?}");
        }
        Ok(())
    });
}
