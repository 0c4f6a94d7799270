//! Servers behind names: they come and go while the gateway runs.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::client::{answers, spread};
use crate::gateway::{Setup, service};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::eventually;
use crate::servers::{VIPS, address, nginx};

/// A name server on rs3 for `test.`, instead of the one that is there, which knows these records. They are good for a
/// second.
fn name_server(lab: &Lab, records: &[&str]) -> Result<()> {
    let _ = lab.end("names.conf");
    let local: String = records.iter().map(|record| format!(" local-data: \"{record}\"\n")).collect();
    let config = format!(
        "server:\n interface: {}\n access-control: 0.0.0.0/0 allow\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n \
         pidfile: \"\"\n use-syslog: no\n module-config: \"iterator\"\n so-rcvbuf: 0\n local-zone: \"test.\" static\n{local}\
         remote-control:\n control-enable: no\n",
        address("rs3")[0]
    );
    let path = lab.path("names.conf");
    fs::write(&path, config)?;
    lab.keep("rs3", "names", &["unbound", "-c", path.to_str().context("a path in UTF-8")?, "-d"])?;
    eventually("the name server answers", PATIENCE, || {
        let dig = ["dig", "@10.20.0.13", "+time=1", "+tries=1", "+short", "nobody.test."];
        lab.run("gw", &dig).is_ok_and(|dig| dig.status.success())
    })
}

/// Waits until exactly these answer at a VIP.
fn serve(lab: &Lab, vip: &str, expected: &[&str]) -> Result<()> {
    eventually(&format!("{expected:?} serve {vip}"), PATIENCE, || {
        answers(lab, vip, 8).is_ok_and(|names| spread(&names).into_keys().eq(expected.iter().copied()))
    })
}

#[test]
fn servers_follow_their_names() {
    scenario(&["nginx", "curl", "unbound", "dig"], |lab| {
        ["rs1", "rs2"].iter().try_for_each(|server| nginx(lab, server, &[8080]))?;
        let list = lab.path("list");
        fs::write(&list, "# one\n10.20.0.11:8080\n")?;
        let file = format!("file:{}", list.display());
        let services = service("v4", &format!("{}:80", VIPS[0]), "tcp", "rr", &[("dns:web.test:8080", 1)])
            + &service("v6", &format!("{}:80", VIPS[1]), "tcp", "rr", &[("dns:web.test:8080", 1)])
            + &service("srv", "203.0.113.10:81", "tcp", "rr", &[("dns+srv:_http._tcp.web.test", 1)])
            + &service("file", "203.0.113.10:82", "tcp", "rr", &[(&file, 1)]);
        // There is no name server yet: the gateway starts all the same, without these servers.
        let gateway = Setup::new(services).gateway("resolver = [\"10.20.0.13\"]").start(lab)?;
        serve(lab, "203.0.113.10:82", &["rs1"])?;
        ensure!(gateway.log_text().contains("dns:web.test:8080 has no server yet"), "{}", gateway.log_text());
        let one = "web.test. 1 IN A 10.20.0.11";
        let both_families = [
            "web.test. 1 IN AAAA fd20::12",
            "rs2.test. 1 IN A 10.20.0.12",
            "_http._tcp.web.test. 1 IN SRV 0 5 8080 rs2.test.",
            "_http._tcp.web.test. 1 IN SRV 9 5 8080 nobody.test.",
            // Has no address: the others of the record serve.
            "_http._tcp.web.test. 1 IN SRV 0 5 8080 nowhere.test.",
        ];
        name_server(lab, &[&[one], &both_families[..]].concat())?;
        serve(lab, VIPS[0], &["rs1"])?;
        serve(lab, VIPS[1], &["rs2"])?;
        serve(lab, "203.0.113.10:81", &["rs2"])?;

        // Another address, and the others stay; an edit of what comes from a name is refused with a reason.
        name_server(lab, &[&[one, "web.test. 1 IN A 10.20.0.12"], &both_families[..]].concat())?;
        serve(lab, VIPS[0], &["rs1", "rs2"])?;
        eventually("the change is told", PATIENCE, || {
            gateway.log_text().contains("names: + service \"v4\", server \"10.20.0.12:8080\"")
        })?;
        let refused = gateway.gatun(&["server", "set", "v4", "10.20.0.12:8080", "--weight", "3"])?.exits(1)?;
        ensure!(refused.stderr.contains("comes from dns:web.test:8080"), "{refused}");
        gateway.gatun(&["server", "set", "v4", "10.20.0.12:8080", "--weight", "3"])?.exits(1)?;
        fs::write(&list, "10.20.0.12:8080 weight=2 name=two\n")?;
        serve(lab, "203.0.113.10:82", &["rs2"])?;

        // What was known last holds while there is no answer, and while a list is wrong.
        lab.end("names.conf")?;
        fs::write(&list, "10.20.0.12:8080 wait=2\n")?;
        eventually("the failures are told", PATIENCE, || {
            let log = gateway.log_text();
            log.matches("what was known last holds").count() >= 2 && log.contains("neither weight=N nor name=NAME")
        })?;
        serve(lab, VIPS[0], &["rs1", "rs2"])?;
        serve(lab, "203.0.113.10:82", &["rs2"])?;

        // Other name servers are asked from a reload on, and are no difference then.
        let config = fs::read_to_string(&gateway.config)?;
        fs::write(&gateway.config, config.replace("[\"10.20.0.13\"]", "[\"10.20.0.13\", \"10.20.0.14\"]"))?;
        let changes = gateway.gatun(&["reload"])?.success()?;
        ensure!(changes.contains("resolver"), "{changes}");
        let changes = gateway.gatun(&["diff"])?.success()?;
        ensure!(changes == "nothing changes\n", "{changes}");
        Ok(())
    });
}
