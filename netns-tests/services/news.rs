//! News: inn2. Each server keeps its own articles, as those of a cluster do that do not feed each other.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Result, ensure};

use super::common::{Cluster, Method, Plan, Service, daemon, run, utf8, vips, without_dns, write_file};
use super::wire::{Protocol, Wire};
use crate::lab::Lab;

/// For each server, by each family.
const ARTICLES: usize = 2;

fn plan() -> Plan {
    Plan {
        needs: &["innd"],
        services: vec![Service { name: "nntp", port: Some(119), protocol: "tcp", check: "type = \"nntp\"", keys: "" }],
        protocols: |_, _| {
            Ok(vec![Protocol::tcp("nntp", 119, greet, |wire| wire.command("DATE", "111").map(|_| wire.server.clone()))])
        },
        start,
        healthy,
    }
}

fn greet(wire: &mut Wire) -> Result<()> {
    // 200 rs1.news.test InterNetNews NNRP server INN 2.7.1 ready (posting ok)
    let banner = wire.reply("200")?;
    wire.server = banner[3..].trim_start().split('.').next().unwrap_or_default().to_string();
    Ok(())
}

fn start(lab: &Lab, _: Method, node: &str) -> Result<()> {
    let work = utf8(&lab.path(node))?;
    let first = !lab.path(node).exists();
    let mut config = format!(
        "domain: news.test
pathhost: {node}.news.test
mta: \"/bin/true %s\"
mailcmd: /bin/true
ovmethod: tradindexed
hismethod: hisv6
enableoverview: true
nnrpdloadlimit: 0
wireformat: true
pathnews: /usr/lib/news
pathbin: /usr/lib/news/bin
pathcontrol: /usr/lib/news/bin/control
"
    );
    for (path, directory) in [
        ("archive", "spool/archive"),
        ("articles", "spool/articles"),
        ("db", "db"),
        ("etc", "etc"),
        ("filter", "filter"),
        ("http", "http"),
        ("incoming", "spool/incoming"),
        ("log", "log"),
        ("outgoing", "spool/outgoing"),
        ("overview", "spool/overview"),
        ("run", "run"),
        ("spool", "spool"),
        ("tmp", "spool/incoming/tmp"),
    ] {
        writeln!(config, "path{path}: {work}/{directory}")?;
        fs::create_dir_all(format!("{work}/{directory}"))?;
    }
    fs::create_dir_all(format!("{work}/spool/incoming/bad"))?;
    if first {
        without_dns(lab, node)?;
        lab.sh(node, &format!("cp -r /etc/news/. {work}/etc; cp -r /var/lib/news/. {work}/db"))?;
    }
    let readers = "auth net {\n hosts: \"*\"\n default: \"<net>\"\n}\naccess net {\n users: \"<net>\"\n \
                   newsgroups: \"*\"\n access: RPA\n addcanlockuser: none\n}\n";
    write_file(lab, node, "etc/readers.conf", readers)?;
    let config = write_file(lab, node, "etc/inn.conf", &config)?;
    // Who asks as another news server is answered without a process of its own: the gateway, which asks often.
    write_file(lab, node, "etc/incoming.conf", "peer gateway {\n hostname: \"10.20.0.1, fd20::1\"\n}\n")?;
    // A server that was killed has left the files behind by which a second one is kept from starting.
    let script = format!(
        "chown -R news:news {work}; rm -f {work}/run/*
         exec setpriv --reuid=news --regid=news --init-groups env INNCONF={config} PATH=/usr/lib/news/bin:$PATH innd -d -c 0"
    );
    daemon(lab, node, "innd", &["sh", "-ec", &script])
}

/// Articles come to each server, and can be read there.
fn healthy(cluster: &Cluster<'_>) -> Result<()> {
    let [protocol] = &cluster.protocols[..] else { anyhow::bail!("one protocol") };
    let mut posted = Vec::new();
    for (family, to) in vips().into_iter().enumerate() {
        for n in 0..ARTICLES * cluster.method.servers().len() {
            let mut wire = cluster.lab.inside("client", || protocol.open(None, to))??;
            let id = format!("<{n}.{family}@client.test>");
            wire.command("POST", "340")?;
            let header =
                format!("From: me@client.test\r\nNewsgroups: local.test\r\nSubject: {n}\r\nMessage-ID: {id}\r\n");
            wire.command(&format!("{header}\r\nThe body of {id}\r\n."), "240")?;
            wire.command("GROUP local.test", "211")?;
            wire.command(&format!("BODY {id}"), "222")?;
            let body = [wire.line()?, wire.line()?];
            ensure!(body == [format!("The body of {id}"), ".".to_string()], "{}: {body:?}", wire.server);
            posted.push(wire.server);
        }
    }
    for server in cluster.method.servers() {
        let theirs = posted.iter().filter(|name| *name == server).count();
        ensure!(theirs == 2 * ARTICLES, "{server} took {theirs}, {} are its share: {posted:?}", 2 * ARTICLES);
        let kept = fs::read_dir(cluster.lab.path(server).join("spool/articles/local/test"))?.count();
        ensure!(kept == theirs, "{server} took {theirs} articles and kept {kept}");
    }
    Ok(())
}

#[test]
fn by_nat() {
    run(&plan(), Method::Nat);
}

#[test]
fn by_direct() {
    run(&plan(), Method::Direct);
}

#[test]
fn by_tunnel() {
    run(&plan(), Method::Tunnel);
}
