//! The commands that look before anything happens: check, explain, replay.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::capture::{Capture, endpoints, packets};
use crate::client::answers;
use crate::gateway::{Setup, gatun};
use crate::lab::scenario;
use crate::servers::{THREE, VIPS, dual_service, three_nginx};

fn web() -> String {
    dual_service(80, "tcp", "rr", &THREE, 8080)
}

#[test]
fn check_names_place_and_nearest_key() {
    scenario(&[], |lab| {
        let setup = Setup::new(web());
        let config = setup.write(lab)?;
        let path = config.to_string_lossy().into_owned();
        gatun(lab, &["check", "-c", &path])?.exits(0)?;
        let text = fs::read_to_string(&config)?.replacen("scheduler", "sheduler", 1);
        let line = text.lines().position(|line| line.contains("sheduler")).unwrap_or_default() + 1;
        fs::write(&config, text)?;
        let refused = gatun(lab, &["check", "-c", &path])?.exits(1)?;
        ensure!(refused.stderr.contains(&format!("{path}:{line}:1")), "file, line and column: {refused}");
        ensure!(refused.stderr.contains("sheduler") && refused.stderr.contains("scheduler"), "{refused}");
        gatun(lab, &["check", "--file", &path])?.exits(2)?;
        Ok(())
    });
}

#[test]
fn explain_says_what_would_happen() {
    scenario(&[], |lab| {
        let gateway = Setup::new(web()).start(lab)?;
        let config = gateway.config.to_string_lossy().into_owned();
        let hit = ["explain", "tcp", "198.51.100.2:40000", "203.0.113.10:80"];
        let miss = ["explain", "tcp", "198.51.100.2:40000", "203.0.113.10:81"];
        let from_file = |words: &[&str]| gatun(lab, &[words, &["-c", &config]].concat());
        for explained in [gateway.gatun(&hit)?, from_file(&hit)?] {
            ensure!(explained.status.success(), "{explained}");
            for word in ["service", "rr", "nat", "10.20.0.1", "8080"] {
                ensure!(explained.stdout.contains(word), "no \"{word}\": {explained}");
            }
        }
        for explained in [gateway.gatun(&miss)?, from_file(&miss)?] {
            ensure!(explained.stdout.contains("no_service"), "{explained}");
        }
        ensure!(gateway.flow_count()? == 0, "to explain is not to admit");
        Ok(())
    });
}

/// A capture of real traffic, run through the engine again, is translated as it was then.
#[test]
fn replay_of_a_capture() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let gateway = Setup::new(web()).start(lab)?;
        let (input, output) = (lab.path("in.pcap"), lab.path("out.pcap"));
        let capture = Capture::of_interface(&lab.netns("gw"), "eth0", &input)?;
        answers(lab, VIPS[0], 3)?;
        answers(lab, VIPS[1], 3)?;
        drop(capture);
        let config = gateway.config.to_string_lossy().into_owned();
        let words = ["replay", "-c", &config, &input.to_string_lossy(), &output.to_string_lossy()];
        let replayed = gatun(lab, &words)?;
        ensure!(replayed.status.success() && replayed.stdout.to_lowercase().contains("forward"), "{replayed}");
        for (vip, servers) in [("203.0.113.10", "10.20.0."), ("2001:db8:f::10", "fd20::1")] {
            let sent = destinations(&input)?.iter().filter(|to| **to == (vip.to_string(), 80)).count();
            ensure!(sent >= 9, "three connections: {sent} packets to {vip}");
            let translated = destinations(&output)?;
            let translated = translated.iter().filter(|(to, port)| to.starts_with(servers) && *port == 8080).count();
            ensure!(translated == sent, "{translated} of {sent} packets to {vip} were translated: {replayed}");
        }
        Ok(())
    });
}

/// Where the packets of a capture go to.
fn destinations(pcap: &Path) -> Result<Vec<(String, u16)>> {
    let packets = packets(pcap)?;
    Ok(packets.iter().filter_map(|packet| endpoints(packet)).map(|(_, to)| (to.ip().to_string(), to.port())).collect())
}

#[test]
fn no_gateway_is_one_line() {
    scenario(&[], |lab| {
        let none = lab.path("none.sock").to_string_lossy().into_owned();
        for words in [&["status"][..], &["conntrack", "list"], &["reload"]] {
            let finished = gatun(lab, &[words, &["--control", &none]].concat())?.exits(1)?;
            ensure!(finished.stdout.is_empty() && finished.stderr.lines().count() == 1, "{finished}");
        }
        gatun(lab, &["conntrack", "frobnicate"])?.exits(2)?;
        Ok(())
    });
}
