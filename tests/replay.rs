//! `gatun replay`: captures in, verdicts and captures out.
#![cfg(feature = "gateway")]

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use serde_json::{Value, json};

const CONFIG: &str = r#"
[conntrack]
timeouts = { udp = "30s" }

[[service]]
name = "dns"
listen = "203.0.113.10:53"
protocol = "udp"
scheduler = "rr"
server = [{ address = "10.20.0.11:5353" }, { address = "10.20.0.12:5353" }]
"#;

/// 2025-01-01.
const START: Duration = Duration::from_secs(1_735_689_600);

fn ask(client: u8, port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4([198, 51, 100, client], [203, 0, 113, 10], 64);
    builder.udp(4000, port).write(&mut packet, b"?").unwrap();
    packet
}

fn answer(server: u8, client: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4([10, 20, 0, server], [198, 51, 100, client], 64);
    builder.udp(5353, 4000).write(&mut packet, b"!").unwrap();
    packet
}

/// What a client asks, what a server answers, a port without a service, an answer that comes too late, and noise.
fn conversation() -> Vec<(u64, Vec<u8>)> {
    vec![
        (0, ask(1, 53)),
        (5, answer(11, 1)),
        (10, ask(2, 54)),
        (20, ask(3, 53)),
        // More than the timeout of 30 s after the last packet of its flow.
        (60_000, answer(12, 3)),
        (60_001, vec![0xff; 20]),
    ]
}

fn replay(directory: &Path, input: &str, extra: &[&str]) -> Output {
    replay_by(CONFIG, directory, input, extra)
}

fn replay_by(config: &str, directory: &Path, input: &str, extra: &[&str]) -> Output {
    std::fs::write(directory.join("gatun.toml"), config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatun"));
    command.args(["replay", "-c", "gatun.toml", input, "out.pcap"]).args(extra).current_dir(directory);
    command.output().unwrap()
}

fn verdicts(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn expected() -> Value {
    json!({
        "packets": 6,
        "sent": 5,
        "not_ip": 1,
        "verdicts": { "forward": 3, "refuse no_service": 1, "pass": 1 },
    })
}

/// Times since the start in milliseconds, and source and destination with their ports.
fn written(path: &Path) -> Vec<(u128, String)> {
    let mut reader = PcapReader::new(File::open(path).unwrap()).unwrap();
    assert_eq!(reader.header().datalink, DataLink::RAW);
    let mut all = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.unwrap();
        let sliced = SlicedPacket::from_ip(&packet.data).unwrap();
        let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("IPv4 went in") };
        let (source, destination) = (ip.header().source_addr(), ip.header().destination_addr());
        let shown = match sliced.transport {
            Some(TransportSlice::Udp(udp)) => {
                let right = udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).unwrap();
                assert_eq!(udp.checksum(), right);
                format!("{source}:{} > {destination}:{}", udp.source_port(), udp.destination_port())
            }
            Some(TransportSlice::Icmpv4(icmp)) => {
                format!("{source} > {destination} icmp {} {}", icmp.type_u8(), icmp.code_u8())
            }
            other => panic!("{other:?}"),
        };
        all.push(((packet.timestamp - START).as_millis(), shown));
    }
    all
}

fn what_should_be_written() -> Vec<(u128, String)> {
    [
        (0, "198.51.100.1:4000 > 10.20.0.11:5353"),
        (5, "203.0.113.10:53 > 198.51.100.1:4000"),
        (10, "203.0.113.10 > 198.51.100.2 icmp 3 3"),
        (20, "198.51.100.3:4000 > 10.20.0.12:5353"),
        (60_000, "10.20.0.12:5353 > 198.51.100.3:4000"),
    ]
    .map(|(time, packet)| (time, packet.to_owned()))
    .into()
}

fn pcap(path: &Path, datalink: DataLink, frame: impl Fn(&[u8]) -> Vec<u8>) {
    pcap_of(&conversation(), path, datalink, frame);
}

fn pcap_of(packets: &[(u64, Vec<u8>)], path: &Path, datalink: DataLink, frame: impl Fn(&[u8]) -> Vec<u8>) {
    let header = PcapHeader { datalink, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(File::create(path).unwrap(), header).unwrap();
    for (time, packet) in packets {
        let frame = frame(packet);
        let packet = PcapPacket::new(START + Duration::from_millis(*time), frame.len() as u32, &frame);
        writer.write_packet(&packet).unwrap();
    }
}

#[test]
fn a_conversation_under_its_own_clock() {
    let directory = tempfile::tempdir().unwrap();
    pcap(&directory.path().join("in.pcap"), DataLink::RAW, <[u8]>::to_vec);
    assert_eq!(verdicts(&replay(directory.path(), "in.pcap", &["--json"])), expected());
    assert_eq!(written(&directory.path().join("out.pcap")), what_should_be_written());

    let output = replay(directory.path(), "in.pcap", &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.contains(&vec!["3", "forward"]) && rows.contains(&vec!["1", "refuse", "no_service"]), "{text}");
    assert!(text.ends_with("6 packets read, 5 written\n"), "{text}");
}

const TRANSLATING: &str = r#"
[[service]]
name = "dns"
listen = "203.0.113.10:53"
protocol = "udp"
method = "fullnat"
pool = ["10.20.0.100"]
server = [{ address = "10.20.0.11:5353" }]

[[masquerade]]
name = "lan"
from = ["10.21.0.0/24"]
to = ["203.0.113.100"]

[[forward]]
name = "echo"
listen = "203.0.113.100:7000"
protocol = "udp"
to = "10.21.0.9:7"
"#;

fn udp((source, sport): ([u8; 4], u16), (destination, dport): ([u8; 4], u16)) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, destination, 64).udp(sport, dport).write(&mut packet, b"?").unwrap();
    packet
}

#[test]
fn sources_are_translated_there_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("in.pcap"), directory.path().join("out.pcap"));
    let run = |packets: &[(u64, Vec<u8>)]| {
        pcap_of(packets, &input, DataLink::RAW, <[u8]>::to_vec);
        let verdicts = verdicts(&replay_by(TRANSLATING, directory.path(), "in.pcap", &["--json"]));
        assert_eq!(verdicts["verdicts"], json!({ "forward": packets.len() }), "one shard hands nothing over");
        written(&output).into_iter().map(|(_, packet)| packet).collect::<Vec<String>>()
    };
    let (pool, outside) = ([10, 20, 0, 100], [203, 0, 113, 100]);
    let (inside, remote) = (([10, 21, 0, 5], 5000), ([198, 51, 100, 9], 53));
    let mut packets = vec![
        (0, ask(1, 53)),
        (1, udp(inside, remote)),
        (2, udp(([198, 51, 100, 7], 99), (outside, 7000))),
        // From one inside host to the other, by the outside.
        (3, udp(inside, (outside, 7000))),
    ];
    let there = run(&packets);
    let port = |packet: &str, address: &str| -> u16 {
        let port = packet.strip_prefix(address).and_then(|rest| rest.split(' ').next()?.parse().ok());
        port.unwrap_or_else(|| panic!("{packet} does not come from {address}"))
    };
    let (of_pool, of_lan) = (port(&there[0], "10.20.0.100:"), port(&there[1], "203.0.113.100:"));
    assert_eq!(there[0], format!("10.20.0.100:{of_pool} > 10.20.0.11:5353"));
    assert_eq!(there[1], format!("203.0.113.100:{of_lan} > 198.51.100.9:53"));
    assert_eq!(there[2], "198.51.100.7:99 > 10.21.0.9:7");
    assert_eq!(there[3], format!("203.0.113.100:{of_lan} > 10.21.0.9:7"));
    packets.extend([
        (10, udp(([10, 20, 0, 11], 5353), (pool, of_pool))),
        (11, udp(remote, (outside, of_lan))),
        (12, udp(([10, 21, 0, 9], 7), ([198, 51, 100, 7], 99))),
        (13, udp(([10, 21, 0, 9], 7), (outside, of_lan))),
    ]);
    let back = run(&packets);
    assert_eq!(back[..4], there, "the same capture gives the same answer");
    let expected = [
        "203.0.113.10:53 > 198.51.100.1:4000",
        "198.51.100.9:53 > 10.21.0.5:5000",
        "203.0.113.100:7000 > 198.51.100.7:99",
        "203.0.113.100:7000 > 10.21.0.5:5000",
    ];
    assert_eq!(back[4..], expected);
}

#[test]
fn ethernet_frames() {
    let directory = tempfile::tempdir().unwrap();
    let frame = |packet: &[u8]| {
        let mut frame = [&[2; 6][..], &[4; 6], &[8, 0], packet].concat();
        // As a card pads it.
        frame.resize(frame.len().max(60), 0);
        frame
    };
    pcap(&directory.path().join("in.pcap"), DataLink::ETHERNET, frame);
    assert_eq!(verdicts(&replay(directory.path(), "in.pcap", &["--json"])), expected());
    assert_eq!(written(&directory.path().join("out.pcap")), what_should_be_written());
}

#[test]
fn pcapng_of_any_resolution() {
    for (option, units_per_second) in [(None, 1_000_000_u64), (Some(9), 1_000_000_000), (Some(0x80 | 20), 1 << 20)] {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join("in.pcapng")).unwrap();
        let mut writer = PcapNgWriter::new(file).unwrap();
        let options = option.map(InterfaceDescriptionOption::IfTsResol).into_iter().collect();
        let interface = InterfaceDescriptionBlock { linktype: DataLink::RAW, snaplen: 0, options };
        writer.write_pcapng_block(interface).unwrap();
        for (time, packet) in conversation() {
            let milliseconds = START.as_millis() as u64 + time;
            // Rounded up, so that no time comes out a millisecond early.
            let units = (u128::from(milliseconds) * u128::from(units_per_second)).div_ceil(1000);
            // The writer takes nanoseconds for the units of the interface.
            let timestamp = Duration::from_nanos(units as u64);
            let block = EnhancedPacketBlock {
                interface_id: 0,
                timestamp,
                original_len: packet.len() as u32,
                data: packet.into(),
                options: Vec::new(),
            };
            writer.write_pcapng_block(block).unwrap();
        }
        assert_eq!(verdicts(&replay(directory.path(), "in.pcapng", &["--json"])), expected());
        assert_eq!(written(&directory.path().join("out.pcap")), what_should_be_written(), "{units_per_second}");
    }
}

#[test]
fn what_cannot_be_read_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let fails = |input: &str, reason: &str| {
        let output = replay(directory.path(), input, &[]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with(&format!("gatun: {input}: ")) && stderr.contains(reason), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    };
    fails("none.pcap", "No such file");
    std::fs::write(directory.path().join("text"), "this is no capture, but long enough to be one").unwrap();
    fails("text", "neither a pcap nor a pcapng file");
    let path = directory.path().join("cut.pcap");
    pcap(&path, DataLink::RAW, <[u8]>::to_vec);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
    fails("cut.pcap", "damaged");
    // The output would replace the input.
    std::fs::hard_link(&path, directory.path().join("out.pcap.new")).unwrap();
    std::fs::rename(directory.path().join("out.pcap.new"), directory.path().join("out.pcap")).unwrap();
    let output = replay(directory.path(), "cut.pcap", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read(&path).unwrap().len(), bytes.len() - 7, "the input is as it was");
}
