//! The same packets as others see them: tshark dissects what we wrap, scapy reads it and writes what we unwrap.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gatun::wire::{Encapsulation, Outer, PacketBuf, View, Wrap, ipv4, pieces, unwrap};

use crate::golden::{every_tunnel, segment};
use crate::support::oracle;
use crate::support::packet::{Build, echo, udp};

/// `None`, after saying so, where the program is not installed.
fn found(test: &str, program: Option<String>, package: &str) -> Option<String> {
    if program.is_some() {
        return program;
    }
    let reason = format!("there is no {package} (scripts/setup test)");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} cannot run: {reason}");
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(list) = std::env::var_os("GATUN_SKIPPED") {
        let mut list = OpenOptions::new().create(true).append(true).open(list).expect("a list to append to");
        writeln!(list, "{test}: {reason}").expect("a list to append to");
    }
    None
}

fn tshark(test: &str) -> Option<String> {
    let runs = Command::new("tshark").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found(test, runs.is_ok_and(|status| status.success()).then(|| "tshark".into()), "tshark")
}

/// A Python that has scapy: the package is the distribution's, so its own Python knows it if the first in the path does not.
fn scapy(test: &str) -> Option<String> {
    let has = |python: &&str| {
        let mut import = Command::new(python);
        import.args(["-c", "import scapy"]).stdout(Stdio::null()).stderr(Stdio::null());
        import.status().is_ok_and(|status| status.success())
    };
    found(
        test,
        ["python3", "/usr/bin/python3"].iter().find(|python| has(python)).map(ToString::to_string),
        "python3-scapy",
    )
}

fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tunnel").join(file)
}

/// Packets on the wire, each with the tunnel that it is in and the packet that it carries.
fn wrapped() -> Vec<(Outer, Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    for (v4, outer) in every_tunnel() {
        let (src, dst) = if v4 { ("198.51.100.2", "203.0.113.10") } else { ("2001:db8:1::2", "2001:db8:f::10") };
        let end = |ip: &str, port| (ip.parse::<std::net::IpAddr>().expect("an address"), port);
        let datagram = udp(end(src, 40000), end(dst, 7)).payload("an odd number of bytes!");
        let fragmented = Build { payload: vec![0x55; 1000], ..datagram.clone() };
        let single = [
            segment(v4, 33).buf(),
            segment(v4, 33).partial(),
            datagram.buf(),
            datagram.partial(),
            echo(src, dst, 7, 8).buf(),
        ];
        let cut = [segment(v4, 4000).super_packet(1300), fragmented.partial()];
        for mut buf in single {
            let view = View::parse(buf.packet()).expect("valid");
            let inner = oracle::complete(&buf);
            assert_eq!(outer.wrap(&mut buf, &view), Ok(()));
            all.push((outer, oracle::complete(&buf), inner));
        }
        // IPv6 would be fragmented outside, and tshark would put it together.
        for (buf, mtu) in cut.into_iter().zip([1500, if v4 { 600 } else { 1500 }]) {
            let sent = pieces(&buf, &Wrap { outer, mtu }, |vnet, headers, payload| {
                let mut piece = PacketBuf::from_packet(&[headers, payload].concat());
                piece.vnet = *vnet;
                let packet = oracle::complete(&piece);
                let inner = packet[outer.overhead()..].to_vec();
                all.push((outer, packet, inner));
                Ok::<(), ()>(())
            });
            assert!(sent.is_ok());
        }
    }
    all
}

#[test]
fn tshark_sees_what_we_mean() {
    let Some(tshark) = tshark("tunnel::foreign::tshark_sees_what_we_mean") else { return };
    let all = wrapped();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("wrapped.pcap");
    std::fs::write(&file, capture(all.iter().map(|(_, packet, _)| packet.as_slice()))).expect("written");
    let mut command = Command::new(tshark);
    command.arg("-n").arg("-r").arg(&file).arg("-X").arg(format!("lua_script:{}", here("gue.lua").display()));
    for check in ["ip.check_checksum", "tcp.check_checksum", "udp.check_checksum"] {
        command.args(["-o", &format!("{check}:TRUE")]);
    }
    // Fragments are looked at one by one.
    command.args(["-o", "ip.defragment:FALSE", "-T", "fields", "-E", "separator=|", "-E", "occurrence=a"]);
    let sums = [
        "ip.checksum.status",
        "tcp.checksum.status",
        "udp.checksum.status",
        "icmp.checksum.status",
        "icmpv6.checksum.status",
    ];
    let fields =
        ["frame.protocols", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "ip.flags.df", "udp.dstport", "_ws.malformed"];
    for field in fields.iter().chain(&sums) {
        command.args(["-e", field]);
    }
    let output = command.env("HOME", directory.path()).output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), all.len(), "{}", String::from_utf8_lossy(&output.stderr));
    for (line, (outer, packet, inner)) in lines.iter().zip(&all) {
        let columns: Vec<&str> = line.split('|').collect();
        let chain = [name(packet), if outer.encapsulation == Encapsulation::Ipip { "" } else { ":udp:gue" }].concat();
        let chain = format!("raw:{chain}:{}", name(inner));
        let rest = columns[0].strip_prefix(&chain).unwrap_or_else(|| panic!("{line}: not {chain}"));
        let fragment = inner[0] >> 4 == 4 && u16::from_be_bytes([inner[6], inner[7]]) & 0x3fff != 0;
        let transport = oracle::decode(inner).expect("valid").protocol;
        let known = match transport {
            6 => ":tcp",
            17 => ":udp",
            1 => ":icmp",
            _ => ":icmpv6",
        };
        assert!(fragment || rest.starts_with(known), "{line}");
        let first = |column: usize| columns[column].split(',').next().unwrap_or_default();
        let at = if outer.dst.is_v4() { 1 } else { 3 };
        assert_eq!((first(at), first(at + 1)), (&*outer.src.to_string(), &*outer.dst.to_string()), "{line}");
        assert!(
            !outer.dst.is_v4() || first(5) == u8::from(inner[0] >> 4 == 6 || ipv4::dont_fragment(inner)).to_string(),
            "{line}"
        );
        assert_eq!(columns[7], "", "{line}");
        // 1 is good; 3 says that there is none, which of GUE over IPv4 is meant so, and 2 that it was not looked at, which
        // happens to fragments.
        let mut statuses: Vec<&str> =
            columns[8..].iter().flat_map(|column| column.split(',')).filter(|s| !s.is_empty()).collect();
        let unsummed = outer.dst.is_v4() && outer.encapsulation != Encapsulation::Ipip;
        if unsummed {
            let none = statuses.iter().position(|status| *status == "3");
            statuses.remove(none.unwrap_or_else(|| panic!("{line}: a sum over IPv4")));
        }
        let least = usize::from(outer.dst.is_v4()) + usize::from(inner[0] >> 4 == 4) + usize::from(!fragment);
        assert!(statuses.len() >= least, "{line}");
        assert!(statuses.iter().all(|status| *status == "1" || fragment && *status == "2"), "{line}");
    }
}

#[test]
fn scapy_reads_what_we_mean() {
    let Some(python) = scapy("tunnel::foreign::scapy_reads_what_we_mean") else { return };
    let all = wrapped();
    let mut child = Command::new(python)
        .arg(here("tunnels.py"))
        .arg("read")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let lines: String = all.iter().map(|(_, packet, _)| hex(packet) + "\n").collect();
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("it reads all before it ends");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(text.lines().count(), all.len());
    for (line, (outer, packet, inner)) in text.lines().zip(&all) {
        let class = |packet: &[u8]| if packet[0] >> 4 == 4 { "IP" } else { "IPv6" };
        let shim = if outer.encapsulation == Encapsulation::Ipip { "" } else { "UDP:GUE:" };
        let (id, df) = match packet[0] >> 4 {
            4 => (u16::from_be_bytes([packet[4], packet[5]]), inner[0] >> 4 == 6 || ipv4::dont_fragment(inner)),
            _ => (0, false),
        };
        let tos = if inner[0] >> 4 == 4 { inner[1] } else { inner[0] << 4 | inner[1] >> 4 };
        let begin = format!("{}:{shim}{}", class(packet), class(inner));
        let end = format!(
            " {} {} {} {tos} {id} {} {} same",
            outer.src,
            outer.dst,
            outer.ttl,
            if df { "DF" } else { "-" },
            hex(inner)
        );
        assert!(line.starts_with(&begin) && line.ends_with(&end), "{line}\n{begin}\n{end}");
        assert_eq!(id == 0, df || packet[0] >> 4 == 6);
    }
}

#[test]
fn what_scapy_writes_is_unwrapped() {
    let Some(python) = scapy("tunnel::foreign::what_scapy_writes_is_unwrapped") else { return };
    let output = Command::new(python).arg(here("tunnels.py")).arg("make").output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(text.lines().count(), 3 * (3 * 3 - 1) * 2, "{}", String::from_utf8_lossy(&output.stderr));
    for line in text.lines() {
        let (packet, inner) = line.split_once(' ').expect("two columns");
        let (packet, inner) = (bytes(packet), bytes(inner));
        let mut buf = PacketBuf::from_packet(&packet);
        let unwrapped = unwrap(&mut buf, |port| port == 6080).expect(line);
        assert_eq!(buf.packet(), inner);
        let ends = if packet[0] >> 4 == 4 { ("10.20.0.1", "10.30.0.14") } else { ("fd20::1", "fd30::14") };
        assert_eq!((&*unwrapped.outer_src.to_string(), &*unwrapped.outer_dst.to_string()), ends);
        // Their sums are right, with sums over IPv4 too.
        let udp = packet[if packet[0] >> 4 == 4 { 9 } else { 6 }] == 17;
        assert!(!udp || unwrapped.encapsulation == Encapsulation::Gue { port: 6080 });
        View::parse(buf.packet()).expect("a valid packet");
    }
}

fn name(packet: &[u8]) -> &'static str {
    if packet[0] >> 4 == 4 { "ip" } else { "ipv6" }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

/// A capture file of raw IP packets (LINKTYPE_RAW).
fn capture<'a>(packets: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 101] {
        file.extend(word.to_le_bytes());
    }
    for (number, packet) in packets.enumerate() {
        for word in [number as u32, 0, packet.len() as u32, packet.len() as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend_from_slice(packet);
    }
    file
}
