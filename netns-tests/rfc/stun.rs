//! RFC 5780: what a STUN server's discovery of a NAT's behaviour finds out about gatun, with each kind of filtering.

use anyhow::{Context, Result, ensure};

use crate::gateway::Setup;
use crate::lab::{Lab, PATIENCE, scenario_on};
use crate::process::{Running, eventually};
use crate::servers::{address, other_addresses};

/// Hosts inside whose masquerades filter differently, and the sentence that the discovery has for it (coturn,
/// src/apps/natdiscovery/natdiscovery.c).
const HOSTS: [(&str, &str, &str, &str); 3] = [
    ("in1", "10.40.0.2", "endpoint", "NAT with Endpoint Independent Filtering!"),
    ("in2", "10.40.0.3", "address", "NAT with Address Dependent Filtering!"),
    ("in2", "10.40.0.4", "address-port", "NAT with Address and Port Dependent Filtering!"),
];

/// A masquerade for each of the hosts.
fn masquerades() -> String {
    let table = |(number, (_, host, filtering, _)): (usize, &(&str, &str, &str, &str))| {
        format!(
            "[[masquerade]]\nname = \"{filtering}\"\nfrom = [\"{host}/32\"]\nto = [\"203.0.113.{}\"]\nfiltering = \
             \"{filtering}\"\n",
            100 + number
        )
    };
    HOSTS.iter().enumerate().map(table).collect()
}

/// A server with two addresses and two ports of each, as the discovery wants it.
fn start_server(lab: &Lab) -> Result<()> {
    let pid = lab.path("turnserver.pid");
    let mut words = vec!["turnserver", "-n", "--no-cli", "--no-tls", "--no-dtls", "--no-auth", "-r", "test", "-m", "1"];
    words.extend(["--listening-port", "3478", "--alt-listening-port", "3479", "--log-file", "stdout", "--pidfile"]);
    words.push(pid.to_str().context("a path in UTF-8")?);
    words.extend(["-L", address("out1")[0], "-L", other_addresses("out1")[0]]);
    lab.keep("out1", "turnserver", &words)?;
    let listens = |port: &str| {
        let sockets = lab.run("out1", &["ss", "-Huln", "sport", "=", port]);
        sockets.is_ok_and(|list| list.stdout.lines().count() >= 2)
    };
    eventually("turnserver listens", PATIENCE, || listens(":3478") && listens(":3479"))
}

fn discover(lab: &Lab, node: &str, from: &str, what: &str) -> Result<Running> {
    lab.start(node, &["turnutils_natdiscovery", what, "-L", from, "-p", "3478", address("out1")[0]])
}

/// All at once: whatever is filtered costs the discovery three seconds.
#[test]
fn rfc5780_discovery_finds_what_is_configured() {
    scenario_on("masquerade", &["turnserver", "turnutils_natdiscovery"], |lab| {
        lab.sh("in2", "ip addr add 10.40.0.4/24 dev eth0")?;
        let _gateway = Setup::new(masquerades()).wan().start(lab)?;
        start_server(lab)?;
        let mut runs = Vec::new();
        for (node, host, filtering, sentence) in HOSTS {
            runs.push((discover(lab, node, host, "-f")?, filtering, sentence));
            runs.push((discover(lab, node, host, "-m")?, filtering, "NAT with Endpoint Independent Mapping!"));
        }
        // The server asks nothing: the host does, of its own outside endpoint.
        runs.push((discover(lab, "in1", "10.40.0.2", "-H")?, "endpoint", "successful hairpinning"));
        for (run, filtering, sentence) in runs {
            let found = run.finish(PATIENCE)?.success()?;
            ensure!(found.contains(sentence), "filtering = \"{filtering}\": not \"{sentence}\":\n{found}");
        }
        Ok(())
    });
}
