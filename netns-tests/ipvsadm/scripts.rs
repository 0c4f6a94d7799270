//! Scripts as administrators of LVS clusters wrote them.

use anyhow::ensure;

use super::Node;
use crate::client::{answers, spread};
use crate::gateway::{Setup, service};
use crate::lab::scenario;
use crate::servers::{nginx, three_nginx};

/// The LVS-NAT how-to: switch forwarding on, add the service and its servers, look at it, take a server out.
#[test]
fn a_web_cluster_by_nat() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let director = Node::new(lab, "gw")?;
        director.sh("echo 1 >/proc/sys/net/ipv4/ip_forward
             ipvsadm -C
             ipvsadm -A -t 203.0.113.10:80 -s rr
             for i in 1 2 3; do ipvsadm -a -t 203.0.113.10:80 -r 10.20.0.1$i:8080 -m; done
             ipvsadm -A -t [2001:db8:f::10]:80 -s wrr
             ipvsadm -a -t [2001:db8:f::10]:80 -r [fd20::11]:8080 -m -w 3
             ipvsadm -a -t [2001:db8:f::10]:80 -r [fd20::12]:8080 -m")?;
        let names = answers(lab, "203.0.113.10", 9)?;
        ensure!(spread(&names).values().all(|count| *count == 3), "{names:?}");
        let names = answers(lab, "[2001:db8:f::10]", 8)?;
        ensure!(spread(&names) == [("rs1", 6), ("rs2", 2)].into(), "{names:?}");
        let stats = director.sh("ipvsadm -Ln --stats -t 203.0.113.10:80 | awk '/->/ && $2 ~ /^10/ { print $3 }'")?;
        ensure!(stats == "3\n3\n3\n", "{stats}");
        director.sh("ipvsadm -Z")?;
        let stats = director.sh("ipvsadm -Ln --stats -t 203.0.113.10:80 | awk '/^TCP/ { print $3 }'")?;
        ensure!(stats == "0\n", "{stats}");

        // Quiesce one, take another out.
        director.sh("ipvsadm -e -t 203.0.113.10:80 -r 10.20.0.11:8080 -m -w 0
             ipvsadm -d -t 203.0.113.10:80 -r 10.20.0.12:8080")?;
        let names = answers(lab, "203.0.113.10", 4)?;
        ensure!(names.iter().all(|name| name == "rs3"), "{names:?}");
        let list = director.sh("ipvsadm -Ln -t 203.0.113.10:80 | awk '/->/ && $2 ~ /^10/ { print $2, $3, $4 }'")?;
        ensure!(list == "10.20.0.11:8080 Masq 0\n10.20.0.13:8080 Masq 1\n", "{list}");
        Ok(())
    });
}

/// Saved, cleared, restored: as it was, as one change.
#[test]
fn rules_survive_a_save_and_a_restore() {
    scenario(&[], |lab| {
        let director = Node::new(lab, "gw")?;
        let rules = "\
-A -t 203.0.113.10:21 -s wrr -p 300 -M 255.255.255.0
-a -t 203.0.113.10:21 -r 10.20.0.11:21 -m -w 2 -x 100 -y 50
-A -t 203.0.113.10:80 -s sh -b sh-fallback,sh-port
-a -t 203.0.113.10:80 -r 10.20.0.11:80 -g -w 1
-a -t 203.0.113.10:80 -r 10.20.0.12:80 -i -w 0 --tun-type ipip
-a -t 203.0.113.10:80 -r 10.20.0.13:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-nocsum
-A -t 203.0.113.11:0 -s wlc -p 360
-a -t 203.0.113.11:0 -r 10.20.0.13:0 -m -w 1
-A -u 203.0.113.10:53 -s rr -o
-a -u 203.0.113.10:53 -r 10.20.0.11:5353 -m -w 1
-A -t [2001:db8:f::10]:80 -s lc -p 60 -M 64
-a -t [2001:db8:f::10]:80 -r 10.20.0.11:80 -i -w 1 --tun-type ipip
-a -t [2001:db8:f::10]:80 -r [fd20::11]:8080 -m -w 65535
";
        std::fs::write(lab.path("rules"), format!("# rules\n\n{}", rules.replacen("-A", "ipvsadm -A", 1)))?;
        let file = lab.path("rules").display().to_string();
        director.sh(&format!("ipvsadm -R <{file}"))?;
        let saved = director.sh("ipvsadm -S -n")?;
        ensure!(saved == rules, "{saved}");
        // The rules are there: -R adds, as the original, and ipvsadm-restore replaces.
        let again = director.run(&format!("ipvsadm -R <{file}"))?.exits(255)?;
        ensure!(again.stderr.starts_with("Service already exists\nDestination already exists\n"), "{again}");
        director
            .sh(&format!("ipvsadm -D -u 203.0.113.10:53; ipvsadm -A -t 203.0.113.11:25; ipvsadm-restore <{file}"))?;
        ensure!(director.sh("ipvsadm-save -n")? == rules);
        let named = director.sh("ipvsadm -S | grep -c '203.0.113.10:\\(ftp\\|http\\|domain\\)'")?;
        ensure!(named.trim() == "8", "{named}");
        // A line that is none: nothing at all is changed.
        let broken =
            director.run("printf '%s\\n' '-C' '-A -t 203.0.113.10:99' '-A -t nonsense:80 -w 3' | ipvsadm -R")?;
        let broken = broken.exits(2)?;
        ensure!(broken.stderr.contains("line 3 of the rules: nothing was changed"), "{broken}");
        ensure!(director.sh("ipvsadm -Sn")? == rules);
        director.sh("ipvsadm --set 7200 120 300; ipvsadm -Sn | head -1 | grep -x -- '--set 7200 120 300'")?;
        Ok(())
    });
}

/// A gateway that was started by hand from a file: its services are in the table, whatever they are called, and are changed.
#[test]
fn the_services_of_a_configuration_file_are_in_the_table() {
    scenario(&["nginx", "curl"], |lab| {
        for node in ["rs1", "rs2"] {
            nginx(lab, node, &[8080])?;
        }
        let servers = [("10.20.0.11:8080", 1)];
        let services = service("web", "203.0.113.10:80", "tcp", "rr", &servers)
            + &service("dns", "203.0.113.10:53", "tcp+udp", "rr", &[("10.20.0.11:53", 1)])
            + &service("many", "203.0.113.11:8000-8099", "tcp", "rr", &[("10.20.0.11:9000", 1)]);
        let gateway = Setup::new(services).start(lab)?;
        let ipvsadm = |words: &str| gateway.gatun(&[&["ipvsadm"][..], &words.split(' ').collect::<Vec<_>>()].concat());
        let saved = ipvsadm("-Sn")?.success()?;
        let expected = "\
-A -t 203.0.113.10:53 -s rr
-a -t 203.0.113.10:53 -r 10.20.0.11:53 -m -w 1
-A -t 203.0.113.10:80 -s rr
-a -t 203.0.113.10:80 -r 10.20.0.11:8080 -m -w 1
-A -t 203.0.113.11:8000-8099 -s rr
-a -t 203.0.113.11:8000-8099 -r 10.20.0.11:9000 -m -w 1
-A -u 203.0.113.10:53 -s rr
-a -u 203.0.113.10:53 -r 10.20.0.11:53 -m -w 1
";
        ensure!(saved == expected, "{saved}");
        ipvsadm("-a -t 203.0.113.10:80 -r 10.20.0.12:8080 -m")?.success()?;
        ipvsadm("-e -t 203.0.113.10:80 -r 10.20.0.11:8080 -m -w 0")?.success()?;
        let names = answers(lab, "203.0.113.10", 3)?;
        ensure!(names.iter().all(|name| name == "rs2"), "{names:?}");
        ipvsadm("-D -u 203.0.113.10:53")?.success()?;
        ipvsadm("-D -t 203.0.113.11:8000-8099")?.success()?;
        let list = gateway.gatun(&["service", "list"])?.success()?;
        let dns = list.lines().find(|line| line.starts_with("dns")).unwrap_or_default();
        ensure!(dns.split_whitespace().nth(1) == Some("tcp") && !list.contains("many"), "{list}");
        // What gatun does not do is one sentence.
        for (words, sentence) in [
            ("-A -f 1 -s rr", "group"),
            ("-A --sctp-service 203.0.113.10:80", "SCTP"),
            ("-a -t 203.0.113.10:80 -r 10.20.0.13 -i --tun-type gre", "GRE"),
            ("--start-daemon master", "synchronise"),
            ("-A -t 203.0.113.10:99 -s nonesuch", "Scheduler or persistence engine not found"),
            ("-a -t 203.0.113.10:80 -r 10.20.0.13 -m -y 5", "Numerical result out of range"),
        ] {
            let refused = ipvsadm(words)?.exits(255)?;
            ensure!(refused.stderr.contains(sentence) && refused.stderr.lines().count() == 1, "{refused}");
        }
        Ok(())
    });
}

/// Persistence, and what is listed of it; a service of all ports.
#[test]
fn clients_stay_with_their_server() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let director = Node::new(lab, "gw")?;
        director.sh("ipvsadm -A -t 203.0.113.10:80 -s rr -p 600 -M 255.255.255.0
             for i in 1 2 3; do ipvsadm -a -t 203.0.113.10:80 -r 10.20.0.1$i:8080 -m; done
             ipvsadm -A -t 203.0.113.11:0 -s rr -p
             for i in 1 2 3; do ipvsadm -a -t 203.0.113.11:0 -r 10.20.0.1$i -m; done")?;
        for (vip, port) in [("203.0.113.10", 80), ("203.0.113.11", 8080)] {
            let names = answers(lab, &format!("{vip}:{port}"), 4)?;
            ensure!(spread(&names).len() == 1, "{names:?}");
        }
        let connections = director.sh("ipvsadm -Lcn")?;
        let templates: Vec<&str> = connections.lines().filter(|line| line.contains(" NONE ")).collect();
        let [web, all] = templates[..] else { anyhow::bail!("two templates were expected: {connections}") };
        let web: Vec<&str> = web.split_whitespace().skip(2).collect();
        ensure!(web[..3] == ["NONE", "198.51.100.0:0", "203.0.113.10:80"] && web[3].ends_with(":8080"), "{web:?}");
        let all: Vec<&str> = all.split_whitespace().skip(2).collect();
        ensure!(all[..3] == ["NONE", "198.51.100.2:0", "203.0.113.11:0"] && all[3].ends_with(":0"), "{all:?}");
        let list =
            director.sh("ipvsadm -Ln --persistent-conn | awk '/->/ && $2 ~ /^10/ { sum += $4 } END { print sum }'")?;
        ensure!(list == "2\n", "{list}");
        let service = director.sh("ipvsadm -Ln -t 203.0.113.10:80 | sed -n 3p")?;
        ensure!(service == "TCP  203.0.113.10:80 rr persistent 600 mask 255.255.255.0\n", "{service}");
        Ok(())
    });
}
