//! A reload that the host refuses leaves no trace: not in the servers' states, not in the checks, not in commands.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::client::answers;
use crate::gateway::{Gateway, Setup};
use crate::lab::{PATIENCE, scenario};
use crate::process::eventually;
use crate::servers::{VIPS, address, nginx, three_nginx};

fn service(name: &str, listen: &str, keys: &str, servers: &[&str]) -> String {
    let server = |name: &&str| format!("{{ name = \"{name}\", address = \"{}:8080\" }}", address(name)[0]);
    let servers: Vec<String> = servers.iter().map(server).collect();
    format!(
        "[[service]]\nname = \"{name}\"\nlisten = \"{listen}:80\"\nscheduler = \"rr\"\n{keys}\nserver = [{}]\n",
        servers.join(", ")
    )
}

fn server(gateway: &Gateway, name: &str) -> Result<Value> {
    let list = gateway.gatun(&["server", "list", "--json"])?.success()?;
    let servers = list.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let found = servers.into_iter().find(|server| server["service"] == "web" && server["name"] == name);
    found.with_context(|| format!("no server {name} of web in:\n{list}"))
}

#[test]
fn leaves_no_trace() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let check = |kind: &str| format!("check = {{ type = \"{kind}\", interval = \"200ms\", timeout = \"200ms\" }}");
        let gateway = Setup::new(service("web", VIPS[0], &check("tcp"), &["rs1", "rs2", "rs3"])).start(lab)?;
        let is = |name: &str, state: &str| server(&gateway, name).is_ok_and(|server| server["state"] == state);
        gateway.gatun(&["server", "drain", "web/rs1"])?.success()?;
        lab.end("nginx-rs2")?;
        eventually("rs2 is down", PATIENCE, || is("rs2", "down"))?;

        // Without the two; and with an address that leads elsewhere, which only the kernel knows.
        let told = lab.path("told");
        let refused = service("web", VIPS[0], &check("http"), &["rs3"])
            + &service("new", "203.0.113.77", &format!("quorum_up = \"echo up >{}\"", told.display()), &["rs1"]);
        lab.sh("gw", "ip route add 203.0.113.77/32 dev lo")?;
        gateway.rewrite(lab, &refused)?;
        let error = gateway.gatun(&["reload"])?.exits(1)?;
        ensure!(error.stderr.contains("203.0.113.77 is already routed to lo"), "{error}");

        ensure!(
            is("rs1", "draining") && is("rs2", "down"),
            "{:?} {:?}",
            server(&gateway, "rs1"),
            server(&gateway, "rs2")
        );
        let names = answers(lab, VIPS[0], 6)?;
        ensure!(names.iter().all(|name| name == "rs3"), "{names:?}");
        let health = server(&gateway, "rs3")?["health"].clone();
        ensure!(health["check"]["type"] == "tcp", "{health}");
        // Time enough for a command, and proof that the checks go on.
        nginx(lab, "rs2", &[8080])?;
        eventually("rs2 is back", PATIENCE, || is("rs2", "up"))?;
        ensure!(!told.exists(), "a command of the refused file was run");

        lab.sh("gw", "ip route del 203.0.113.77/32 dev lo")?;
        gateway.gatun(&["reload"])?.success()?;
        eventually("the command is run", PATIENCE, || told.exists())?;
        Ok(())
    });
}

#[test]
fn a_change_behind_a_name_is_tried_again() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let list = lab.path("list");
        let write = |name: &str| std::fs::write(&list, format!("{}:8080\n", address(name)[0]));
        write("rs1")?;
        let servers = format!("{{ address = \"file:{}\" }}", list.display());
        let listen = format!("[[service]]\nname = \"web\"\nlisten = \"{}:80\"\nserver = [{servers}]\n", VIPS[0]);
        let gateway = Setup::new(listen).start(lab)?;
        // An uplink that nobody misses until the host is looked at.
        lab.sh("gw", "ip link add extra0 type veth peer name extra1")?;
        let text = std::fs::read_to_string(&gateway.config)?;
        std::fs::write(&gateway.config, text.replace("[\"eth0\"]", "[\"eth0\", \"extra0\"]"))?;
        gateway.gatun(&["reload"])?.success()?;
        lab.sh("gw", "ip link del extra0")?;
        write("rs2")?;
        let refused = || gateway.log_text().contains("but these cannot serve");
        eventually("the change is refused", PATIENCE, refused)?;
        ensure!(answers(lab, VIPS[0], 2)?.iter().all(|name| name == "rs1"), "the old server serves");
        lab.sh("gw", "ip link add extra0 type veth peer name extra1")?;
        let follows = || answers(lab, VIPS[0], 1).is_ok_and(|names| names[0] == "rs2");
        eventually("the change is made", PATIENCE, follows)?;
        Ok(())
    });
}
