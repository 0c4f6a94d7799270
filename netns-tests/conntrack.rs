//! Looking into the table, and changing it: formats, filters, watch, delete, flush, count.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::client::answers;
use crate::flow_line::FlowLine;
use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::servers::{THREE, VIPS, dual_service, named_service, three_nginx, udp_echo};

const NEEDS: [&str; 2] = ["nginx", "curl"];

fn services() -> String {
    dual_service(80, "tcp", "rr", &THREE, 8080) + &named_service("echo", 9000, "udp", "rr", &[("rs1", 1)], 9000)
}

/// One connection that stays open, and one UDP exchange, of each family.
fn traffic(lab: &Lab) -> Result<(Vec<TcpStream>, Vec<UdpSocket>)> {
    let (mut connections, mut sockets) = (Vec::new(), Vec::new());
    for vip in VIPS {
        let to: SocketAddr = format!("{vip}:80").parse()?;
        let mut stream = lab.inside("client", || TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
        ensure!(stream.read(&mut [0; 1024])? > 0, "no answer from {vip}");
        connections.push(stream);
        let to: SocketAddr = format!("{vip}:9000").parse()?;
        let unspecified = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = lab.inside("client", || UdpSocket::bind(unspecified))??;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        for _ in 0..3 {
            socket.send(b"echo")?;
            socket.recv(&mut [0; 64])?;
        }
        sockets.push(socket);
    }
    Ok((connections, sockets))
}

#[test]
fn list_and_filters() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        udp_echo(lab, "rs1", 9000)?;
        let gateway = Setup::new(services()).start(lab)?;
        let (connections, sockets) = traffic(lab)?;
        // Every line is parsed by the format of conntrack-tools; see FlowLine.
        let flows = gateway.flows(&[])?;
        ensure!(flows.len() == 4 && gateway.flow_count()? == 4, "{flows:?}");
        let tcp = flows.iter().find(|flow| flow.protocol == "tcp" && flow.original.src.is_ipv4()).context("tcp")?;
        ensure!(tcp.state.as_deref() == Some("ESTABLISHED") && tcp.assured && !tcp.unreplied, "{tcp:?}");
        // RFC 5382 REQ-5: not less than 2 hours 4 minutes.
        ensure!((7430..=7440).contains(&tcp.timeout), "{tcp:?}");
        ensure!(tcp.number == 6 && tcp.original.dst == "203.0.113.10".parse::<std::net::IpAddr>()?, "{tcp:?}");
        ensure!(tcp.original.ports == (connections[0].local_addr()?.port(), 80), "{tcp:?}");
        ensure!(tcp.reply.dst == tcp.original.src && tcp.reply.ports == (8080, tcp.original.ports.0), "{tcp:?}");
        let udp = flows.iter().find(|flow| flow.protocol == "udp" && flow.original.src.is_ipv6()).context("udp")?;
        // RFC 4787 REQ-5: five minutes.
        ensure!(udp.number == 17 && !udp.unreplied && (290..=300).contains(&udp.timeout), "{udp:?}");
        ensure!(udp.original.ports.0 == sockets[1].local_addr()?.port(), "{udp:?}");

        let sport = tcp.original.ports.0.to_string();
        let server = tcp.reply.src.to_string();
        for (filter, count) in [
            (&["--proto", "tcp"][..], 2),
            (&["--proto", "udp"], 2),
            (&["--src", "198.51.100.2"], 2),
            (&["--src", "198.51.100.0/24"], 2),
            (&["--src", "198.51.101.0/24"], 0),
            (&["--dst", "2001:db8:f::10"], 2),
            (&["--sport", &sport, "--dst", "203.0.113.10"], 1),
            (&["--dport", "9000"], 2),
            (&["--dport", "9000", "--proto", "tcp"], 0),
            (&["--state", "ESTABLISHED"], 2),
            (&["--state", "TIME_WAIT"], 0),
            (&["--service", "echo6"], 1),
            (&["--method", "nat"], 4),
            (&["--server", &format!("{server}:8080")], 1),
        ] {
            let found = gateway.flows(filter)?;
            ensure!(found.len() == count, "{filter:?}: {found:?}");
        }

        // -o extended puts the network layer in front.
        let extended = gateway.gatun(&["conntrack", "list", "-o", "extended"])?.success()?;
        for line in extended.lines() {
            let rest = line.strip_prefix("ipv4     2 ").or_else(|| line.strip_prefix("ipv6     10 "));
            rest.with_context(|| line.to_string())?;
        }
        ensure!(extended.lines().count() == 4, "{extended}");
        let json = gateway.gatun(&["conntrack", "list", "-o", "json"])?.success()?;
        for line in json.lines() {
            let flow: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_string())?;
            ensure!(flow.is_object(), "{line}");
        }
        ensure!(json.lines().count() == 4, "{json}");
        let wide = gateway.gatun(&["conntrack", "list", "-o", "wide"])?.success()?;
        for word in ["service6", "echo", "nat", "10.20.0.11:9000", "[fd20::11]:9000"] {
            ensure!(wide.contains(word), "no {word} in:\n{wide}");
        }
        // conntrack's summary goes to stderr, where a pipe does not see it.
        let list = gateway.gatun(&["conntrack", "list"])?;
        ensure!(list.stderr.contains("4 flow entries have been shown"), "{list}");
        Ok(())
    });
}

#[test]
fn unreplied_and_half_open() {
    scenario(&NEEDS, |lab| {
        let gateway = Setup::new(services()).start(lab)?;
        // A server that answers nothing.
        lab.sh("gw", "ip link set lan-rs1 down; ip link set lan-rs2 down; ip link set lan-rs3 down")?;
        let to: SocketAddr = "203.0.113.10:80".parse()?;
        let _ = lab.inside("client", || TcpStream::connect_timeout(&to, Duration::from_millis(200)))?;
        let flows = gateway.flows(&["--proto", "tcp"])?;
        ensure!(flows.len() == 1, "{flows:?}");
        ensure!(flows[0].unreplied && !flows[0].assured && flows[0].state.as_deref() == Some("SYN_SENT"), "{flows:?}");
        Ok(())
    });
}

#[test]
fn delete_and_flush() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        udp_echo(lab, "rs1", 9000)?;
        let gateway = Setup::new(services()).start(lab)?;
        let (mut connections, sockets) = traffic(lab)?;
        let said = |words: &[&str]| -> Result<String> {
            let finished = gateway.gatun(&[&["conntrack"], words].concat())?;
            ensure!(finished.status.success(), "{finished}");
            Ok(finished.stdout + &finished.stderr)
        };
        let deleted = said(&["delete", "--proto", "udp", "--dst", "203.0.113.10"])?;
        ensure!(deleted.contains('1'), "how many: {deleted}");
        ensure!(gateway.flow_count()? == 3);
        // The next datagram makes a new flow.
        sockets[0].send(b"again")?;
        sockets[0].recv(&mut [0; 64])?;
        ensure!(gateway.flow_count()? == 4);
        let flushed = said(&["flush"])?;
        ensure!(flushed.contains('4'), "how many: {flushed}");
        ensure!(gateway.flow_count()? == 0);
        // A connection in the middle of its life that nobody knows any more does not come back by itself.
        connections[0].set_read_timeout(Some(Duration::from_secs(1)))?;
        connections[0].write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
        ensure!(connections[0].read(&mut [0; 64]).is_err(), "an unknown connection was answered");
        // Nothing deleted without a filter: that is what flush is for.
        gateway.gatun(&["conntrack", "delete"])?.exits(2)?;
        Ok(())
    });
}

#[test]
fn watch() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let gateway = Setup::new(services()).start(lab)?;
        let watch = gateway.start(&["conntrack", "watch"])?;
        std::thread::sleep(Duration::from_millis(300));
        answers(lab, VIPS[0], 3)?;
        gateway.gatun(&["conntrack", "flush"])?.success()?;
        std::thread::sleep(Duration::from_millis(500));
        watch.signal(libc::SIGINT);
        let output = watch.finish(Duration::from_secs(5))?.stdout;
        let lines_of = |tag: &str| {
            output.lines().filter_map(|line| line.strip_prefix(tag)).map(str::to_string).collect::<Vec<_>>()
        };
        // "%9s " in front, as conntrack -E prints it.
        let (new, update, destroy) = (lines_of("    [NEW] "), lines_of(" [UPDATE] "), lines_of("[DESTROY] "));
        ensure!((new.len(), destroy.len()) == (3, 3) && update.len() >= 6, "{output}");
        ensure!(new.len() + update.len() + destroy.len() == output.lines().count(), "other lines:\n{output}");
        // A new flow of conntrack -E has no mark and use yet; a destroyed one has neither timeout nor state.
        ensure!(new.iter().all(|line| line.contains("SYN_SENT") && line.contains("[UNREPLIED]")), "{output}");
        ensure!(update.iter().any(|line| line.contains("ESTABLISHED") && line.contains("[ASSURED]")), "{output}");
        ensure!(destroy.iter().all(|line| line.starts_with("tcp      6 src=198.51.100.2 ")), "{output}");
        Ok(())
    });
}

#[test]
fn stats_have_every_reason() {
    scenario(&NEEDS, |lab| {
        let gateway = Setup::new(services()).start(lab)?;
        // A port of the VIP without a service.
        let to: SocketAddr = "203.0.113.10:81".parse()?;
        let _ = lab.inside("client", || TcpStream::connect_timeout(&to, Duration::from_millis(300)))?;
        let stats = gateway.gatun(&["conntrack", "stats"])?.success()?;
        for reason in gatun::verdict::DropReason::ALL {
            ensure!(stats.contains(reason.word()), "no {} in:\n{stats}", reason.word());
        }
        Ok(())
    });
}

/// The lines of ICMP flows have type, code and id; gatun itself answers ping to a VIP, so none is in the table.
#[test]
fn icmp_lines_have_a_format() {
    let line = "icmp     1 59 src=198.51.100.2 dst=203.0.113.10 type=8 code=0 id=7 src=10.20.0.11 dst=198.51.100.2 type=0 code=0 id=7 mark=0 use=1";
    assert!(line.parse::<FlowLine>().is_ok());
}
