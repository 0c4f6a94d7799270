//! Servers that fail, and come back: their checks notice, and the gateway goes by them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::client::answers;
use crate::gateway::{Gateway, Setup};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::eventually;
use crate::servers::{VIPS, address, nginx, three_nginx};

/// How long a failure may stay unnoticed: two intervals, the timeout, and a margin of half an interval.
const NOTICED: Duration = Duration::from_millis(700);
/// A busy machine may be late now and then, but not most times: two of three must be in time.
const ROUNDS: usize = 3;
const ENOUGH: usize = 2;

const FAST: &str = "interval = \"200ms\", timeout = \"200ms\", rise = 2, fall = 2";

fn service(name: &str, port: u16, keys: &str, servers: &[&str], server_port: u16) -> String {
    let server = |name: &&str| format!("{{ name = \"{name}\", address = \"{}:{server_port}\" }}", address(name)[0]);
    let servers: Vec<String> = servers.iter().map(server).collect();
    let listen = format!("{}:{port}", VIPS[0]);
    format!(
        "[[service]]\nname = \"{name}\"\nlisten = \"{listen}\"\nscheduler = \"rr\"\n{keys}\nserver = [{}]\n",
        servers.join(", ")
    )
}

/// A server of `gatun server list`.
fn server(gateway: &Gateway, service: &str, name: &str) -> Result<Value> {
    let list = gateway.gatun(&["server", "list", "--json"])?.success()?;
    let servers = list.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let found = servers.into_iter().find(|server| server["service"] == service && server["name"] == name);
    found.with_context(|| format!("no server {name} of {service} in:\n{list}"))
}

fn is_in(gateway: &Gateway, service: &str, name: &str, state: &str) -> bool {
    server(gateway, service, name).is_ok_and(|server| server["state"] == state)
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn signal(lab: &Lab, word: &str, signal: i32) -> Result<()> {
    let processes = lab.processes.borrow();
    let found = processes.iter().find(|process| process.what.contains(word));
    found.with_context(|| format!("no process {word}")).map(|process| process.signal(signal))
}

#[derive(Clone, Copy, Debug)]
enum Failure {
    Killed,
    Frozen,
    CutOff,
}

impl Failure {
    fn begin(self, lab: &Lab) -> Result<()> {
        match self {
            Failure::Killed => lab.end("nginx-rs2"),
            Failure::Frozen => signal(lab, "nginx-rs2", libc::SIGSTOP),
            Failure::CutOff => lab.sh("gw", "ip link set lan-rs2 down").map(drop),
        }
    }

    fn end(self, lab: &Lab) -> Result<()> {
        match self {
            Failure::Killed => nginx(lab, "rs2", &[8080]),
            Failure::Frozen => signal(lab, "nginx-rs2", libc::SIGCONT),
            Failure::CutOff => lab.sh("gw", "ip link set lan-rs2 up").map(drop),
        }
    }
}

/// Fails rs2, and tells after how long the gateway said so. Then nobody comes to it any more, until it is back.
fn fail_once(lab: &Lab, gateway: &Gateway, events: &str, failure: Failure) -> Result<Duration> {
    let file = lab.path(events);
    let events = || -> Vec<Value> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let before = events().len();
    let begun = now();
    failure.begin(lab)?;
    eventually(&format!("rs2 is down: {failure:?}"), PATIENCE, || events().len() > before)?;
    let event = events().swap_remove(before);
    ensure!(event["change"] == "down" && event["server"] == "rs2", "{event}");
    let told = Duration::from_micros(event["time"].as_u64().context("a time")?);

    let admitted = server(gateway, "web", "rs2")?["admitted"].clone();
    let names = answers(lab, VIPS[0], 9)?;
    ensure!(!names.iter().any(|name| name == "rs2"), "{failure:?}: {names:?}");
    ensure!(server(gateway, "web", "rs2")?["admitted"] == admitted, "{failure:?}: a new flow came to rs2");

    failure.end(lab)?;
    eventually(&format!("rs2 is back: {failure:?}"), PATIENCE, || is_in(gateway, "web", "rs2", "up"))?;
    ensure!(answers(lab, VIPS[0], 6)?.iter().any(|name| name == "rs2"), "{failure:?}: rs2 gets nothing");
    eventually("that is told", PATIENCE, || events().len() == before + 2)?;
    ensure!(events()[before + 1]["change"] == "up");
    Ok(told.saturating_sub(begun))
}

#[test]
fn a_dead_server_gets_no_new_flow() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let check = format!("check = {{ type = \"http\", {FAST} }}");
        let gateway = Setup::new(service("web", 80, &check, &["rs1", "rs2", "rs3"], 8080)).start(lab)?;
        let checked = || server(&gateway, "web", "rs2").is_ok_and(|server| server["health"]["check"]["ok"] == true);
        eventually("rs2 is checked", PATIENCE, checked)?;
        let _watch = gateway.start_logged(&["server", "watch", "--json"], &lab.path("events"))?;
        // The watch has begun when its connection is there; what happens before that is not told.
        std::thread::sleep(Duration::from_millis(300));
        for failure in [Failure::Killed, Failure::Frozen, Failure::CutOff] {
            let mut times = Vec::new();
            let in_time = |times: &[Duration]| times.iter().filter(|time| **time <= NOTICED).count();
            while times.len() < ROUNDS && in_time(&times) < ENOUGH {
                times.push(fail_once(lab, &gateway, "events", failure)?);
            }
            println!("{failure:?} was noticed after {times:?}");
            ensure!(in_time(&times) >= ENOUGH, "{failure:?} was noticed after {times:?} only");
        }
        ensure!(gateway.metric("gatun_server_check_failures_total", &["server=\"rs2\""])? >= 6.0);
        ensure!(gateway.metric("gatun_server_transitions_total", &["server=\"rs2\""])? >= 6.0);
        ensure!(gateway.metric("gatun_server_up", &["service=\"web\""])? == 3.0);
        let list = gateway.gatun(&["server", "list"])?.success()?;
        ensure!(list.contains("http: status 200, "), "{list}");
        Ok(())
    });
}

/// A program says how much a server may do; a quorum that is lost brings in the sorry server; commands are told.
#[test]
fn weights_quorums_and_commands() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let (code, told) = (lab.path("code"), lab.path("told"));
        std::fs::write(&code, "4")?;
        let exec = format!(
            "check = {{ type = \"exec\", command = \"test $GATUN_SERVER = rs2 && exit $(cat {}); exit 0\", weight = true, {FAST} }}",
            code.display()
        );
        let quorum = format!(
            "check = {{ type = \"tcp\", {FAST} }}\nquorum = 2\nsorry_server = \"{}:8080\"\n\
             quorum_up = \"echo $GATUN_QUORUM $GATUN_SERVICE $GATUN_WEIGHT >>{told}\"\n\
             quorum_down = \"echo $GATUN_QUORUM $GATUN_SERVICE $GATUN_WEIGHT >>{told}\"\n",
            address("rs3")[0],
            told = told.display()
        );
        let services =
            service("weighed", 81, &exec, &["rs1", "rs2"], 8080) + &service("web", 80, &quorum, &["rs1", "rs2"], 8080);
        let gateway = Setup::new(services).start(lab)?;

        let weight = |weight: u64| server(&gateway, "weighed", "rs2").is_ok_and(|server| server["weight"] == weight);
        eventually("the program's weight is used", PATIENCE, || weight(2))?;
        // A configured 0 holds against it.
        gateway.gatun(&["server", "set", "weighed/rs2", "--weight", "0"])?.success()?;
        ensure!(weight(0), "a server that the operator has set to 0 gets flows");
        gateway.gatun(&["server", "set", "weighed/rs2", "--weight", "1"])?.success()?;
        ensure!(weight(2), "the program's weight is used again");
        std::fs::write(&code, "2")?;
        eventually("the next one as well", PATIENCE, || weight(0))?;
        let names = answers(lab, &format!("{}:81", VIPS[0]), 6)?;
        ensure!(names.iter().all(|name| name == "rs1"), "rs2 has weight 0: {names:?}");
        std::fs::write(&code, "1")?;
        eventually("rs2 is down", PATIENCE, || is_in(&gateway, "weighed", "rs2", "down"))?;

        let said = || std::fs::read_to_string(&told).unwrap_or_default();
        eventually("the first command", PATIENCE, || said() == "up web 2\n")?;
        lab.end("nginx-rs2")?;
        eventually("the quorum is lost", PATIENCE, || said() == "up web 2\ndown web 1\n")?;
        let names = answers(lab, VIPS[0], 4)?;
        ensure!(names.iter().all(|name| name == "rs3"), "the sorry server serves: {names:?}");
        nginx(lab, "rs2", &[8080])?;
        eventually("the quorum is gained", PATIENCE, || said() == "up web 2\ndown web 1\nup web 2\n")?;
        let names = answers(lab, VIPS[0], 4)?;
        ensure!(!names.iter().any(|name| name == "rs3"), "{names:?}");
        Ok(())
    });
}
