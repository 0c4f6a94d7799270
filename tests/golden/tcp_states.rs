//! The TCP states, row by row as IPVS has them (Linux, `net/netfilter/ipvs/ip_vs_proto_tcp.c`), and what a flow makes of
//! them: who moves it, which RST counts, when it is over.

use std::time::Duration;

use gatun::engine::Engine;
use gatun::flow::{Sender, TcpState, Trigger, next};
use gatun::time::Instant;
use gatun::timeouts::Timeouts;
use gatun::verdict::{DropReason, Verdict};

use crate::support::packet::{ACK, Build, FIN, PSH, RST, SYN, tcp};
use crate::support::world;
use crate::{Net, oracle};

/// Columns by state; INPUT is from the client, OUTPUT from the server.
const TABLE: &str = "
        NO ES SS SR FW TW CL CW LA LI SA
INPUT  syn SR ES ES SR SR SR SR SR SR SR SR
INPUT  fin CL CW SS TW TW TW CL CW LA LI TW
INPUT  ack ES ES SS ES FW TW CL CW CL LI ES
INPUT  rst CL CL CL SR CL CL CL CL LA LI SR
OUTPUT syn SS ES SS SR SS SS SS SS SS LI SR
OUTPUT fin TW FW SS TW FW TW CL TW LA LI TW
OUTPUT ack ES ES SS ES FW TW CL CW LA ES ES
OUTPUT rst CL CL SS CL CL TW CL CL CL CL CL
";

#[test]
fn the_table_is_that_of_ipvs() {
    let mut lines = TABLE.trim().lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let columns: Vec<TcpState> = lines.next().expect("a head").into_iter().map(state).collect();
    let mut cells = 0;
    for line in lines {
        let sender = if line[0] == "INPUT" { Sender::Client } else { Sender::Server };
        let trigger = match line[1] {
            "syn" => Trigger::Syn,
            "fin" => Trigger::Fin,
            "ack" => Trigger::Ack,
            _ => Trigger::Rst,
        };
        for (from, to) in columns.iter().zip(&line[2..]) {
            assert_eq!(next(*from, sender, trigger), state(to), "{from:?} on {} {}", line[0], line[1]);
            cells += 1;
        }
    }
    assert_eq!(cells, 8 * 11);
}

#[test]
fn a_connection_from_handshake_to_last_ack() {
    for net in Net::BOTH {
        let mut c = Connection::open(net);
        assert_eq!(c.state(), "ESTABLISHED");
        c.server(FIN | ACK, 5001, 1001);
        assert_eq!(c.state(), "FIN_WAIT");
        c.client(ACK, 1001, 5002);
        c.client(FIN | ACK, 1001, 5002);
        assert_eq!(c.state(), "TIME_WAIT");
        c.server(ACK, 5002, 1002);
        assert_eq!(c.state(), "TIME_WAIT");

        let mut c = Connection::open(net);
        c.client(FIN | ACK, 1001, 5001);
        assert_eq!(c.state(), "CLOSE_WAIT");
        c.server(ACK, 5001, 1002);
        assert_eq!(c.state(), "CLOSE_WAIT");
        c.server(FIN | ACK, 5001, 1002);
        assert_eq!(c.state(), "TIME_WAIT");
    }
}

#[test]
fn each_state_has_its_timeout() {
    // To the second, in both profiles: how to get there, and the timeout's name.
    type Path = fn(&mut Connection);
    let paths: [(&str, Path); 6] = [
        ("tcp_syn_recv", |_| {}),
        ("tcp_established", |c| c.handshake()),
        ("tcp_fin_wait", |c| {
            c.handshake();
            c.server(FIN | ACK, 5001, 1001);
        }),
        ("tcp_close_wait", |c| {
            c.handshake();
            c.client(FIN | ACK, 1001, 5001);
        }),
        ("tcp_time_wait", |c| {
            c.handshake();
            c.client(FIN | ACK, 1001, 5001);
            c.server(FIN | ACK, 5001, 1002);
        }),
        ("tcp_close", |c| {
            c.handshake();
            c.client(RST, 1001, 0);
        }),
    ];
    for timeouts in [Timeouts::RFC, Timeouts::IPVS] {
        for (name, path) in paths {
            let mut c = Connection::with(Net::V4, timeouts);
            c.client(SYN, 1000, 0);
            path(&mut c);
            let mut all = timeouts;
            let timeout = *all.entries().into_iter().find(|(entry, _)| *entry == name).expect(name).1;
            assert_eq!(c.engine.flows(c.now, 0, 1).0[0].remaining, timeout, "{name}");
            c.pass(timeout - Duration::from_millis(1));
            assert_eq!(c.flows(), 1, "{name} ended early");
            c.pass(Duration::from_secs(1));
            assert_eq!(c.flows(), 0, "{name} did not end");
            assert_eq!(c.engine.stats().flows_expired, 1);
        }
    }
}

#[test]
fn an_unanswered_syn_is_shown_as_conntrack_does() {
    let mut c = Connection::new(Net::V4);
    c.client(SYN, 1000, 0);
    assert_eq!(c.state(), "SYN_SENT");
    c.server(SYN | ACK, 5000, 1001);
    assert_eq!(c.state(), "SYN_RECV");
    let flow = &c.engine.flows(c.now, 0, 1).0[0];
    assert!(flow.replied && !flow.assured);
    c.client(ACK, 1001, 5001);
    assert!(c.engine.flows(c.now, 0, 1).0[0].assured);
}

#[test]
fn a_made_up_ack_establishes_nothing() {
    let mut c = Connection::new(Net::V4);
    c.client(SYN, 1000, 0);
    // The server has said nothing; nor does its number agree once it has.
    c.client(ACK, 1001, 77);
    assert_eq!(c.state(), "SYN_SENT");
    c.server(SYN | ACK, 0x5000_0000, 1001);
    c.client(ACK, 1001, 77);
    assert_eq!(c.state(), "SYN_RECV");
    // Half the sequence space away, where a difference has no absolute value.
    c.client(ACK, 1001, 0xd000_0001);
    assert_eq!(c.state(), "SYN_RECV");
    c.client(ACK, 1001, 0x5000_0001);
    assert_eq!(c.state(), "ESTABLISHED");
}

#[test]
fn only_a_plausible_rst_ends_a_flow() {
    for net in Net::BOTH {
        for (seq, counts) in
            [(1001, true), (1301, true), (1000, true), (500_000, false), (0x8000_0000, false), (1, false)]
        {
            let mut c = Connection::open(net);
            c.client(ACK | PSH, 1001, 5001);
            c.server(ACK, 5001, 1001);
            c.client(RST, seq, 0);
            assert_eq!(c.state(), if counts { "CLOSE" } else { "ESTABLISHED" }, "RST of the client with {seq}");
            assert_eq!(c.engine.stats().rst_ignored, u64::from(!counts));
        }
        for (seq, counts) in [(5001, true), (9_000_000, false), (0, false)] {
            let mut c = Connection::open(net);
            c.server(RST, seq, 0);
            assert_eq!(c.state(), if counts { "CLOSE" } else { "ESTABLISHED" }, "RST of the server with {seq}");
        }
        // The refusal of a SYN acknowledges it.
        for (ack, counts) in [(1001, true), (4242, false)] {
            let mut c = Connection::new(net);
            c.client(SYN, 1000, 0);
            c.server(RST | ACK, 0, ack);
            assert_eq!(c.state() == "CLOSE", counts, "RST for a SYN with ACK {ack}");
        }
    }
}

#[test]
fn a_forged_syn_does_not_make_a_forged_rst_plausible() {
    // Both halves of the sequence space, seen from what the client has sent.
    for seq in [3_000_000, 0x7000_0000, 0x9000_0000, 0xf000_0000] {
        for (from_client, flags) in [(true, SYN), (false, SYN | ACK)] {
            let mut c = Connection::open(Net::V4);
            c.send(from_client, c.segment(from_client, flags, seq, 1));
            assert_eq!(c.state(), "ESTABLISHED");
            c.send(from_client, c.segment(from_client, RST, seq + 1, 0));
            assert_eq!((c.state(), c.engine.stats().rst_ignored), ("ESTABLISHED", 1), "SYN and RST from {seq} on");
        }
    }
}

#[test]
fn an_implausible_rst_does_not_keep_a_flow_alive() {
    let mut c = Connection::open(Net::V4);
    let remaining = c.engine.flows(c.now, 0, 1).0[0].remaining;
    c.pass(Duration::from_secs(60));
    c.client(RST, 0x8000_0000, 0);
    assert_eq!(c.engine.flows(c.now, 0, 1).0[0].remaining, remaining - Duration::from_secs(60));
}

#[test]
fn ports_used_again_while_the_old_connection_closes_are_judged_by_the_new_numbers() {
    let mut c = Connection::open(Net::V4);
    c.client(FIN | ACK, 1001, 5001);
    assert_eq!(c.state(), "CLOSE_WAIT");
    c.client(SYN, 2_000_000_000, 0);
    c.server(SYN | ACK, 3_000_000_000, 2_000_000_001);
    c.client(ACK, 2_000_000_001, 3_000_000_001);
    assert_eq!(c.state(), "ESTABLISHED");
    // The old numbers count no more, the new ones do.
    c.client(RST, 1002, 0);
    assert_eq!(c.state(), "ESTABLISHED");
    c.client(RST, 2_000_000_001, 0);
    assert_eq!(c.state(), "CLOSE");
}

#[test]
fn sequence_numbers_wrap() {
    let mut c = Connection::new(Net::V4);
    c.client(SYN, u32::MAX - 1, 0);
    c.server(SYN | ACK, u32::MAX, u32::MAX);
    c.client(ACK, u32::MAX, 0);
    assert_eq!(c.state(), "ESTABLISHED");
    c.send(true, c.segment(true, ACK | PSH, u32::MAX, 0).payload([7; 100]));
    c.server(ACK, 0, 99);
    c.client(RST, 0x7fff_0000, 0);
    assert_eq!(c.state(), "ESTABLISHED");
    c.client(RST, 99, 0);
    assert_eq!(c.state(), "CLOSE");
}

#[test]
fn a_syn_over_an_ended_flow_starts_a_new_one_at_once() {
    for net in Net::BOTH {
        for end in [&[(true, FIN | ACK, 1001, 5001), (false, FIN | ACK, 5001, 1002)][..], &[(true, RST, 1001, 0)]] {
            let mut c = Connection::open(net);
            for &(from_client, flags, seq, ack) in end {
                c.send(from_client, c.segment(from_client, flags, seq, ack));
            }
            let first = c.reply_end();
            c.client(SYN, 90_000, 0);
            // Round robin: the new connection is scheduled anew.
            assert_ne!(c.reply_end(), first);
            assert_eq!((c.state(), c.flows()), ("SYN_SENT", 1));
            assert_eq!((c.engine.stats().flows_reused, c.engine.stats().flows_created), (1, 2));
        }
    }
}

#[test]
fn a_syn_within_a_live_flow_changes_nothing() {
    let mut c = Connection::open(Net::V4);
    let first = c.reply_end();
    c.client(SYN, 90_000, 0);
    assert_eq!((c.reply_end(), c.state(), c.flows()), (first, "ESTABLISHED", 1));
    assert_eq!(c.engine.stats().flows_reused, 0);
}

#[test]
fn an_ended_flow_takes_no_new_packets_but_a_syn() {
    let mut c = Connection::open(Net::V4);
    c.client(RST, 1001, 0);
    c.pass(Duration::from_secs(241));
    let mut late = c.segment(true, ACK, 1001, 5001).buf();
    assert_eq!(c.engine.handle_packet(c.now, &mut late), Verdict::Refuse(DropReason::NoFlow));
}

pub fn state(word: &str) -> TcpState {
    let words = ["NO", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI", "SA"];
    TcpState::ALL[words.iter().position(|w| *w == word).expect(word)]
}

/// A client, a server and the engine between them.
struct Connection {
    net: Net,
    engine: Engine,
    now: Instant,
}

impl Connection {
    fn new(net: Net) -> Connection {
        Connection::with(net, Timeouts::RFC)
    }

    fn with(net: Net, timeouts: Timeouts) -> Connection {
        let spec = gatun::service::SnapshotSpec { timeouts, ..net.spec() };
        let snapshot = gatun::service::Snapshot::build(spec, None).expect("valid");
        Connection { net, engine: world::engine(snapshot.into(), 8), now: Instant::from_secs(5000) }
    }

    fn open(net: Net) -> Connection {
        let mut connection = Connection::new(net);
        connection.client(SYN, 1000, 0);
        connection.handshake();
        connection
    }

    /// What follows the client's SYN with number 1000.
    fn handshake(&mut self) {
        self.server(SYN | ACK, 5000, 1001);
        self.client(ACK, 1001, 5001);
    }

    fn client(&mut self, flags: u8, seq: u32, ack: u32) {
        self.send(true, self.segment(true, flags, seq, ack));
    }

    fn server(&mut self, flags: u8, seq: u32, ack: u32) {
        self.send(false, self.segment(false, flags, seq, ack));
    }

    fn segment(&self, from_client: bool, flags: u8, seq: u32, ack: u32) -> Build {
        let (client, vip) = (self.net.client(40000), self.net.vip(80));
        let segment = if from_client { tcp(client, vip) } else { tcp(self.reply_end(), client) };
        segment.flags(flags).seq(seq, ack)
    }

    /// Whatever the engine thinks of it, it is forwarded.
    fn send(&mut self, _from_client: bool, segment: Build) {
        let mut buf = segment.buf();
        assert_eq!(self.engine.handle_packet(self.now, &mut buf), Verdict::Forward, "{segment:?}");
        assert!(oracle::checksums_are_right(buf.packet()));
        self.engine.check_invariants();
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.engine.handle_timeout(self.now);
    }

    fn flows(&self) -> usize {
        self.engine.occupancy().0
    }

    fn state(&self) -> &'static str {
        self.engine.flows(self.now, 0, 1).0[0].state_word().expect("TCP")
    }

    /// Where the flow's server answers from.
    fn reply_end(&self) -> std::net::SocketAddr {
        let reply = self.engine.flows(self.now, 0, 1).0[0].reply;
        (reply.src.ip(), reply.sport).into()
    }
}
