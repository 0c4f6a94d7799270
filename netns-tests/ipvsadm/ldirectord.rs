//! Debian's ldirectord, which checks servers and calls ipvsadm to put them in and take them out.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Node;
use crate::client::{answers, curl};
use crate::lab::{Lab, scenario};
use crate::process::{Running, eventually};
use crate::servers::{nginx, unbound};

/// Its checks take a second each at most, one after the other, every second.
const NOTICED: Duration = Duration::from_secs(20);

#[test]
fn ldirectord_takes_dead_servers_out_and_puts_them_back() {
    scenario(&["ldirectord", "nginx", "curl", "unbound", "dig", "unshare"], |lab| {
        for node in ["rs1", "rs2"] {
            nginx(lab, node, &[80])?;
            unbound(lab, node, 53)?;
        }
        let director = Node::new(lab, "gw")?;
        director.sh("ipvsadm --set 900 120 300")?;
        let _ldirectord = start(lab, &director)?;
        let table = || director.sh("ipvsadm -Sn").unwrap_or_default();
        let all = "\
-A -t 203.0.113.10:80 -s rr
-a -t 203.0.113.10:80 -r 10.20.0.11:80 -m -w 1
-a -t 203.0.113.10:80 -r 10.20.0.12:80 -m -w 2
-A -u 203.0.113.10:53 -s wlc
-a -u 203.0.113.10:53 -r 10.20.0.11:53 -m -w 1
-a -u 203.0.113.10:53 -r 10.20.0.12:53 -m -w 1
";
        eventually("both services have both servers", NOTICED, || table() == all)
            .with_context(|| format!("{}\n{}", table(), log(lab)))?;
        ensure!(answers(lab, "203.0.113.10", 6)?.iter().any(|name| name == "rs2"));

        // A dead web server is quiesced, a dead name server removed.
        lab.end("nginx-rs2")?;
        lab.end("unbound-rs1")?;
        let without = all
            .replace("-r 10.20.0.12:80 -m -w 2", "-r 10.20.0.12:80 -m -w 0")
            .replace("-a -u 203.0.113.10:53 -r 10.20.0.11:53 -m -w 1\n", "");
        eventually("the dead ones are out", NOTICED, || table() == without)
            .with_context(|| format!("{}\n{}", table(), log(lab)))?;
        ensure!(answers(lab, "203.0.113.10", 6)?.iter().all(|name| name == "rs1"));
        let answer = lab.sh("client", "dig +short +timeout=2 +tries=1 @203.0.113.10 h7.test")?;
        ensure!(!answer.is_empty());

        nginx(lab, "rs2", &[80])?;
        unbound(lab, "rs1", 53)?;
        eventually("both are back", NOTICED, || table() == all)
            .with_context(|| format!("{}\n{}", table(), log(lab)))?;
        curl(lab, "http://203.0.113.10/")?.success()?;
        Ok(())
    });
}

/// In debug mode it stays in the foreground, and calls the ipvsadm of its working directory, if there is one. It keeps its
/// process number in a /run of its own.
fn start(lab: &Lab, director: &Node<'_>) -> Result<Running> {
    let config = lab.path("ldirectord.cf");
    fs::write(
        &config,
        "checktimeout=1
negotiatetimeout=1
checkinterval=1
autoreload=no
fork=no
virtual=203.0.113.10:80
\treal=10.20.0.11:80 masq 1
\treal=10.20.0.12:80 masq 2
\tservice=http
\tscheduler=rr
\tprotocol=tcp
\tchecktype=negotiate
\trequest=\"/\"
\treceive=\"rs\"
\tquiescent=yes
virtual=203.0.113.10:53
\treal=10.20.0.11:53 masq
\treal=10.20.0.12:53 masq
\tservice=dns
\tscheduler=wlc
\tprotocol=udp
\tchecktype=negotiate
\trequest=\"h7.test\"
\treceive=\"192.0.2.7\"
\tquiescent=no
",
    )?;
    let run = lab.path("run");
    fs::create_dir_all(run.join("lock"))?;
    let script = format!(
        "mount --bind {} /run && cd {} && exec ldirectord -d {} start",
        run.display(),
        lab.path("bin").display(),
        config.display()
    );
    let command = director.command(&["unshare", "--mount", "--", "sh", "-ec", &script])?;
    Running::logged(command, &lab.path("ldirectord.log"))
}

fn log(lab: &Lab) -> String {
    let log = fs::read_to_string(lab.path("ldirectord.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().rev().take(40).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
