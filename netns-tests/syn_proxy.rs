//! The SYN proxy: clients reach their servers through it, and a flood of forged SYNs does not.

use anyhow::{Result, ensure};

use crate::client::{answers, curl, download, random_file, sha256, upload};
use crate::gateway::{Gateway, Setup};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::eventually;
use crate::servers::{VIPS, dual_service, named_service, nginx};

/// With the SYN proxy.
fn proxied(services: String, when: &str) -> String {
    services.replace("method = \"nat\"\n", &format!("method = \"nat\"\nsyn_proxy = \"{when}\"\n"))
}

#[test]
fn carries_pages_and_files() {
    scenario(&["nginx", "curl"], |lab| {
        nginx(lab, "rs1", &[8080])?;
        random_file(lab, "original", 20)?;
        let original = sha256(lab, "original")?;
        let by_nat = named_service("nat", 80, "tcp", "rr", &[("rs1", 1)], 8080);
        let by_fullnat = named_service("full", 81, "tcp", "rr", &[("rs1", 1)], 8080)
            .replace("method = \"nat\"\n", "method = \"nat\"\nSOURCE");
        let services =
            proxied(by_nat + &by_fullnat, "always").replace("method = \"nat\"\nsyn_proxy = \"always\"\nSOURCE", POOL);
        let gateway = Setup::new(services).uncaptured().start(lab)?;
        for (family, port) in [(0, 80), (1, 80), (0, 81), (1, 81)] {
            let base = format!("{}:{port}", VIPS[family]);
            answers(lab, &base, 5)?;
            // Large files by one family each.
            if family == port % 2 {
                download(lab, &base, "original", "downloaded")?;
                upload(lab, &base, "original", "uploaded")?;
                for copy in ["downloaded", "uploaded"] {
                    ensure!(sha256(lab, copy)? == original, "{base}: {copy} is not the original");
                }
            }
        }
        let (sent, proven) = cookies(&gateway)?;
        ensure!(sent >= 24.0 && proven == 24.0, "{sent} cookies sent, {proven} proven");
        let flows = gateway.gatun(&["conntrack", "list", "-o", "wide"])?.success()?;
        ensure!(flows.contains("shifted"), "{flows}");
        Ok(())
    });
}

const POOL: &str = "method = \"fullnat\"\nsyn_proxy = \"always\"\npool = [\"203.0.113.200\", \"2001:db8:f::200\"]\n";

/// Cookies sent and proven.
fn cookies(gateway: &Gateway) -> Result<(f64, f64)> {
    Ok((gateway.metric("gatun_cookies_sent_total", &[])?, gateway.metric("gatun_cookies_proven_total", &[])?))
}

/// SYNs that came to the server: forged ones, and the client's own.
fn syns(lab: &Lab) -> Result<(u64, u64)> {
    let list = lab.sh("rs1", "nft list table inet count")?;
    let count = |word: &str| {
        let line = list.lines().find(|line| line.contains(word)).unwrap_or_default();
        line.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap_or(u64::MAX)
    };
    Ok((count("forged"), count("client")))
}

#[test]
fn keeps_a_flood_of_forged_syns_from_servers() {
    scenario(&["nginx", "curl", "hping3", "nft"], |lab| {
        nginx(lab, "rs1", &[8080])?;
        lab.sh(
            "rs1",
            "nft 'table inet count { chain input { type filter hook input priority 0;
             tcp flags & (syn | ack) == syn ip saddr != 198.51.100.2 counter comment \"forged\";
             tcp flags & (syn | ack) == syn ip saddr 198.51.100.2 counter comment \"client\"; }; }'",
        )?;
        // Answers to the forged sources go to the client, who drops what is not for it.
        lab.sh("gw", "ip route add default via 198.51.100.2")?;
        let always = proxied(dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080), "always");
        let auto = proxied(named_service("auto", 81, "tcp", "rr", &[("rs1", 1)], 8080), "auto");
        let gateway = Setup::new(format!("[limits]\nhalf_open = 100\n{always}{auto}"))
            .gateway("queues = 1")
            .uncaptured()
            .start(lab)?;
        // The loopback's own, by which it was waited for.
        let before = syns(lab)?;

        let flood = |port: &str| {
            lab.start("client", &["hping3", "-q", "-S", "-p", port, "--rand-source", "-i", "u50", VIPS[0]])
        };
        let mut running = flood("80")?;
        let flooded = || cookies(&gateway).is_ok_and(|(sent, _)| sent > 2000.0);
        eventually("SYNs are answered by cookies", PATIENCE, flooded)?;
        answers(lab, VIPS[0], 300)?;
        ensure!(running.alive(), "the flood went on all the time");
        drop(running);
        let (forged, client) = syns(lab)?;
        ensure!(forged == before.0, "{} forged SYNs came to the server", forged - before.0);
        ensure!(client - before.1 >= 300, "{} connections came to the server", client - before.1);
        let (sent, proven) = cookies(&gateway)?;
        ensure!(sent > proven + 2000.0 && proven >= 300.0, "{sent} cookies sent, {proven} proven");
        ensure!(gateway.flow_count()? < 400, "there is a flow of a forged SYN");

        // The same with a service that lets SYNs through as long as there are few.
        curl(lab, &format!("http://{}:81/", VIPS[0]))?.success()?;
        ensure!(cookies(&gateway)?.1 <= proven, "it was asked first though nothing is wrong");
        let mut running = flood("81")?;
        let flooded = || cookies(&gateway).is_ok_and(|now| now.0 > sent + 1000.0);
        eventually("SYNs are answered by cookies", PATIENCE, flooded)?;
        answers(lab, &format!("{}:81", VIPS[0]), 100)?;
        ensure!(running.alive(), "the flood went on all the time");
        let passed = syns(lab)?.0 - forged;
        ensure!(passed <= 101, "{passed} forged SYNs came to the server, though 100 may be half-open");
        ensure!(gateway.log_text().lines().count() < 200, "a stranger can fill the log");
        gateway.stop()?;
        Ok(())
    });
}
