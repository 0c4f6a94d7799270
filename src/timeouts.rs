//! Every timeout of the engine, in one place.

use std::time::Duration;

/// How long a flow without a packet lives, by its state. Ranges: 1 s to 31 days each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp_none: Duration,
    pub tcp_syn_sent: Duration,
    pub tcp_syn_recv: Duration,
    pub tcp_established: Duration,
    pub tcp_fin_wait: Duration,
    pub tcp_close_wait: Duration,
    pub tcp_last_ack: Duration,
    pub tcp_time_wait: Duration,
    pub tcp_close: Duration,
    pub tcp_listen: Duration,
    pub tcp_synack: Duration,
    pub udp: Duration,
    pub icmp: Duration,
    /// How long the fragments of one packet may take to arrive (RFC 791 allows up to 2 min, Linux waits 30 s).
    pub fragment: Duration,
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl Timeouts {
    /// Of the gateway's own probes, whatever their protocol and state. The control plane ends them itself, long before.
    pub const PROBE: Duration = secs(120);

    /// What the NAT RFCs require at least: RFC 5382 REQ-5 (TCP established 2 h 4 min, transitory 4 min), RFC 4787 REQ-5
    /// (UDP 5 min by default), RFC 5508 REQ-2 (ICMP query 60 s), RFC 7857 section 2 (4 min after a RST).
    pub const RFC: Timeouts = Timeouts {
        tcp_none: secs(240),
        tcp_syn_sent: secs(240),
        tcp_syn_recv: secs(240),
        tcp_established: secs(7440),
        tcp_fin_wait: secs(240),
        tcp_close_wait: secs(240),
        tcp_last_ack: secs(240),
        tcp_time_wait: secs(240),
        tcp_close: secs(240),
        tcp_listen: secs(240),
        tcp_synack: secs(240),
        udp: secs(300),
        icmp: secs(60),
        fragment: secs(30),
    };

    /// The values of IPVS (Linux, `net/netfilter/ipvs/ip_vs_proto_tcp.c`, `ip_vs_proto_udp.c`).
    pub const IPVS: Timeouts = Timeouts {
        tcp_none: secs(2),
        tcp_syn_sent: secs(120),
        tcp_syn_recv: secs(60),
        tcp_established: secs(900),
        tcp_fin_wait: secs(120),
        tcp_close_wait: secs(60),
        tcp_last_ack: secs(30),
        tcp_time_wait: secs(120),
        tcp_close: secs(10),
        tcp_listen: secs(120),
        tcp_synack: secs(120),
        udp: secs(300),
        icmp: secs(60),
        fragment: secs(30),
    };

    /// Every key by its name in the config, for reading and writing one by one.
    pub fn entries(&mut self) -> [(&'static str, &mut Duration); 14] {
        [
            ("tcp_none", &mut self.tcp_none),
            ("tcp_syn_sent", &mut self.tcp_syn_sent),
            ("tcp_syn_recv", &mut self.tcp_syn_recv),
            ("tcp_established", &mut self.tcp_established),
            ("tcp_fin_wait", &mut self.tcp_fin_wait),
            ("tcp_close_wait", &mut self.tcp_close_wait),
            ("tcp_last_ack", &mut self.tcp_last_ack),
            ("tcp_time_wait", &mut self.tcp_time_wait),
            ("tcp_close", &mut self.tcp_close),
            ("tcp_listen", &mut self.tcp_listen),
            ("tcp_synack", &mut self.tcp_synack),
            ("udp", &mut self.udp),
            ("icmp", &mut self.icmp),
            ("fragment", &mut self.fragment),
        ]
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts::RFC
    }
}
