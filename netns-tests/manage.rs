//! A running gateway is changed by commands: no request fails meanwhile, and what was saved is there after a restart.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::client::{answers, random_file, spread};
use crate::gateway::{Gateway, Setup};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::{Running, eventually};
use crate::reload::requests_without_error;
use crate::servers::{THREE, VIPS, dual_service, three_nginx};

/// `GATUN_LOAD_SECONDS=30` makes it as long as one likes.
fn seconds_of_load() -> u64 {
    std::env::var("GATUN_LOAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

fn load(lab: &Lab, vip: &str, seconds: u64, headers: &[&str]) -> Result<Running> {
    let (url, duration) = (format!("http://{vip}/"), format!("{seconds}s"));
    let words = ["wrk", "-t", "1", "-c", "16", "-d", &duration, "--timeout", "5s"];
    lab.start("client", &[&words, headers, &[&url]].concat())
}

fn change(gateway: &Gateway, words: &[&str]) -> Result<String> {
    gateway.gatun(words)?.success()
}

/// Who answers a few requests.
fn serving(lab: &Lab) -> Result<Vec<String>> {
    let names = answers(lab, VIPS[0], 9)?;
    Ok(spread(&names).into_keys().map(str::to_owned).collect())
}

#[test]
fn no_request_fails_while_servers_come_and_go() {
    scenario(&["nginx", "curl", "wrk"], |lab| {
        three_nginx(lab)?;
        let gateway = Setup::new(dual_service(80, "tcp", "rr", &THREE, 8080)).uncaptured().start(lab)?;
        // Long connections over IPv4, one for each request over IPv6.
        let (begin, seconds) = (Instant::now(), seconds_of_load());
        let kept = load(lab, VIPS[0], seconds, &[])?;
        let single = load(lab, VIPS[1], seconds, &["-H", "Connection: close"])?;
        let two = ["service/10.20.0.12:8080", "service6/[fd20::12]:8080"];
        let reload = || change(&gateway, &["reload"]);
        for round in 0..20 {
            let (family, name) = (round % 2, two[round % 2]);
            let (service, address) = name.split_once('/').unwrap_or_default();
            match round % 10 / 2 {
                0 => change(&gateway, &["server", "drain", name])?,
                1 => change(&gateway, &["server", "set", name, "--weight", "3"])?,
                2 => change(&gateway, &["server", "drain", name, "--cancel"])?,
                3 => change(&gateway, &["server", "remove", name])?,
                _ => change(&gateway, &["service", "set", service, "--scheduler", ["wlc", "mh"][family]])?,
            };
            // Brings back what was not saved.
            reload()?;
            // And as an edit of its own, which is one change with what it undoes.
            change(&gateway, &["server", "remove", service, address])?;
            change(&gateway, &["server", "add", service, address])?;
            // The whole of the load, and not much longer.
            let due = begin + Duration::from_millis(seconds * 900 * (round as u64 + 1) / 20);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        for output in [kept, single] {
            let output = output.finish(Duration::from_secs(20 + seconds))?.success()?;
            ensure!(requests_without_error(&output)? > 300, "{output}");
        }
        let status = change(&gateway, &["status", "--json"])?;
        ensure!(status.contains("\"reloads_ok\":20"), "{status}");
        Ok(())
    });
}

#[test]
fn a_drain_is_gentle_until_its_deadline() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        random_file(lab, "original", 6)?;
        let gateway = Setup::new(dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080)).start(lab)?;
        let url = format!("http://{}/slow/original", VIPS[0]);
        let curl = ["curl", "-sSgf", "--max-time", "30", "-o", "/dev/null", &url];
        let (first, under_way) = (lab.start("client", &curl)?, || {
            gateway
                .flows(&["--state", "ESTABLISHED", "--server", "10.20.0.11:8080"])
                .is_ok_and(|flows| !flows.is_empty())
        });
        eventually("the download is under way", PATIENCE, under_way)?;
        change(&gateway, &["server", "add", "service", "10.20.0.12:8080"])?;
        let told = change(&gateway, &["server", "drain", "service", "10.20.0.11:8080"])?;
        ensure!(told.starts_with("service/10.20.0.11:8080: draining, 1 flow left"), "{told}");
        ensure!(serving(lab)? == ["rs2"], "a server that is drained gets new flows");
        // A reload forgets the server that was not saved, and not the drain.
        change(&gateway, &["server", "add", "service", "10.20.0.13:8080", "--save"])?;
        change(&gateway, &["reload"])?;
        ensure!(serving(lab)? == ["rs3"] && under_way(), "after the reload {:?}", serving(lab)?);

        // Its deadline ends what is left.
        let wait = ["server", "drain", "service/10.20.0.11:8080", "--deadline", "1s", "--wait"];
        let told = change(&gateway, &wait)?;
        ensure!(told.lines().last() == Some("service/10.20.0.11:8080: drained, no flow left"), "{told}");
        ensure!(gateway.flows(&["--server", "10.20.0.11:8080"])?.is_empty(), "flows are left");
        let cut = first.finish(PATIENCE)?;
        ensure!(cut.stderr.contains("reset by peer"), "the client is told: {cut}");

        // Or does not; and then it may come back.
        change(&gateway, &["server", "drain", "service/10.20.0.11:8080", "--cancel"])?;
        change(&gateway, &["server", "drain", "service/10.20.0.13:8080"])?;
        let second = lab.start("client", &curl)?;
        eventually("another download is under way", PATIENCE, under_way)?;
        let told = change(&gateway, &[&wait[..], &["--then", "keep"]].concat())?;
        ensure!(told.ends_with("draining, 1 flow left\n") && under_way(), "{told}");
        second.finish(PATIENCE)?.success()?;
        Ok(())
    });
}

#[test]
fn what_was_saved_is_there_after_a_restart() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let services = format!("# Of the shop.\n{}", dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080));
        let gateway = Setup::new(services).start(lab)?;
        let add = ["server", "add", "service", "10.20.0.12:8080", "--weight", "2"];
        change(&gateway, &add)?;
        let diff = change(&gateway, &["diff"])?;
        ensure!(diff == "- service \"service\", server \"10.20.0.12:8080\": 10.20.0.12:8080, weight 2\n", "{diff}");
        let told = gateway.gatun(&["service", "set", "service", "--scheduler", "wrong"])?.exits(1)?;
        ensure!(told.stderr.contains("scheduler \"wrong\" is unknown"), "{told}");

        change(&gateway, &["server", "remove", "10.20.0.12:8080"])?;
        let told = change(&gateway, &[&add[..], &["--save"]].concat())?;
        ensure!(told.contains("saved to") && told.contains("weight 2"), "{told}");
        let listen = ["--listen", "203.0.113.11:80", "--server", "10.20.0.13:8080"];
        change(&gateway, &[&["service", "add", "other"], &listen[..]].concat())?;
        ensure!(spread(&answers(lab, "203.0.113.11", 2)?).into_keys().eq(["rs3"]), "the new service serves");
        // What the operator has written meanwhile is not lost.
        fs::write(&gateway.config, fs::read_to_string(&gateway.config)? + "# A note.\n")?;
        let refused = gateway.gatun(&["save"])?.exits(1)?;
        ensure!(refused.stderr.contains("has been changed since it was loaded"), "{refused}");
        let told = gateway.gatun(&["server", "set", "10.20.0.13:8080", "--weight", "3", "--save"])?.exits(1)?;
        ensure!(told.stderr.contains("no service is named \"other\"") && told.stderr.contains("gatun save"), "{told}");
        let told = gateway.gatun(&["server", "set", "10.20.0.12:8080", "--weight", "1", "--save"])?;
        ensure!(told.stderr.contains("had been changed since it was loaded"), "{told}");
        // Also now that one change was made beside it.
        let refused = gateway.gatun(&["save"])?.exits(1)?;
        ensure!(refused.stderr.contains("--force"), "{refused}");
        ensure!(fs::read_to_string(&gateway.config)?.ends_with("# A note.\n"), "the note is lost");
        change(&gateway, &["save", "--force"])?;
        let file = fs::read_to_string(&gateway.config)?;
        ensure!(file.contains("# Of the shop.") && file.contains("name = \"other\""), "{file}");
        gateway.stop()?;
        gateway.restart(lab)?;
        ensure!(serving(lab)? == ["rs1", "rs2"], "{:?}", serving(lab)?);
        ensure!(spread(&answers(lab, "203.0.113.11", 2)?).into_keys().eq(["rs3"]), "the saved service serves");
        Ok(())
    });
}
