//! Flows as conntrack-tools prints them: the line of libnetfilter_conntrack's `nfct_snprintf` in its default output type.
//!
//! ```text
//! tcp      6 431999 ESTABLISHED src=… dst=… sport=… dport=… src=… dst=… sport=… dport=… [ASSURED] mark=0 use=1
//! ```
//!
//! Pure: what is printed follows from the arguments alone.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv6Addr};

use crate::control::api::{Change, Flow, FlowEvent, Side};

/// The version of conntrack-tools whose output this is; its summary lines name it.
pub(super) const TOOLS_VERSION: &str = "1.4.7";

/// What is shown besides the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// `-o extended`: the network layer's name and number in front.
    pub extended: bool,
    /// `-o wide`: packets and bytes of both directions, and what gatun knows besides.
    pub wide: bool,
}

/// A line of `conntrack -L`, without its end.
pub fn list_line(flow: &Flow, style: Style) -> String {
    Line { flow, style, event: None }.to_string()
}

/// A line of `conntrack -E`, without its end. Events tell neither mark nor use, and the end of a flow neither its
/// timeout nor its state.
pub fn event_line(event: &FlowEvent, style: Style) -> String {
    Line { flow: &event.flow, style, event: Some(event.change) }.to_string()
}

/// What `-o timestamp` puts in front of a line; `micros` since 1970.
pub fn timestamp(micros: u64) -> String {
    format!("[{:08}.{:06}]\t", micros / 1_000_000, micros % 1_000_000)
}

/// The summary after a list, an event stream or a deletion: `done` is what has been done with the flows.
pub fn summary(flows: u64, done: &str) -> String {
    format!("conntrack v{TOOLS_VERSION} (conntrack-tools): {flows} flow {done}.")
}

struct Line<'a> {
    flow: &'a Flow,
    style: Style,
    event: Option<Change>,
}

impl Display for Line<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let flow = self.flow;
        if let Some(change) = self.event {
            write!(f, "{:>9} ", tag(change))?;
        }
        if self.style.extended {
            let (name, number) = if flow.original.src.is_ipv4() { ("ipv4", 2) } else { ("ipv6", 10) };
            write!(f, "{name:<8} {number} ")?;
        }
        write!(f, "{:<8} {} ", flow.proto, flow.protonum)?;
        if self.event != Some(Change::Destroy) {
            write!(f, "{} ", flow.timeout)?;
            if let Some(state) = &flow.state {
                write!(f, "{state} ")?;
            }
        }
        self.side(f, &flow.original, false)?;
        if !flow.replied {
            f.write_str(" [UNREPLIED]")?;
        }
        f.write_str(" ")?;
        self.side(f, &flow.reply, true)?;
        if flow.assured {
            f.write_str(" [ASSURED]")?;
        }
        if self.event.is_none() {
            f.write_str(" mark=0 use=1")?;
        }
        if self.style.wide {
            let Flow { service, server, method, shard, age, .. } = flow;
            write!(f, " service={service} server={server} method={method} shard={shard} age={age}")?;
            if !flow.marks.is_empty() {
                write!(f, " marks={}", flow.marks.join(","))?;
            }
        }
        Ok(())
    }
}

impl Line<'_> {
    fn side(&self, f: &mut Formatter<'_>, side: &Side, reply: bool) -> fmt::Result {
        write!(f, "src={} dst={} ", Address(side.src), Address(side.dst))?;
        match echo_type(self.flow.protonum, reply) {
            Some(kind) => write!(f, "type={kind} code=0 id={}", side.sport)?,
            None => write!(f, "sport={} dport={}", side.sport, side.dport)?,
        }
        if self.style.wide {
            write!(f, " packets={} bytes={}", side.packets, side.bytes)?;
        }
        Ok(())
    }
}

fn tag(change: Change) -> &'static str {
    match change {
        Change::New => "[NEW]",
        Change::Update => "[UPDATE]",
        Change::Destroy => "[DESTROY]",
    }
}

/// Only echo is tracked, so the type follows from protocol and direction.
fn echo_type(protonum: u8, reply: bool) -> Option<u8> {
    match (protonum, reply) {
        (1, false) => Some(8),
        (1, true) => Some(0),
        (58, false) => Some(128),
        (58, true) => Some(129),
        _ => None,
    }
}

/// As glibc's `inet_ntop` has it, which libnetfilter_conntrack uses. It differs from Rust in one point: an address of
/// the deprecated form `::a.b.c.d` (RFC 4291 section 2.5.5.1) is written so.
pub(super) struct Address(pub IpAddr);

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V6(ip) => match v4_compatible(ip) {
                Some([a, b, c, d]) => write!(f, "::{a}.{b}.{c}.{d}"),
                None => ip.fmt(f),
            },
            IpAddr::V4(ip) => ip.fmt(f),
        }
    }
}

fn v4_compatible(ip: Ipv6Addr) -> Option<[u8; 4]> {
    match ip.segments() {
        // With a seventh zero group the run of zeros is longer, and glibc writes hexadecimal again: `::1`.
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => {
            let octets = ip.octets();
            Some([octets[12], octets[13], octets[14], octets[15]])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(src: &str, dst: &str, sport: u16, dport: u16) -> Side {
        let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
        Side { src, dst, sport, dport, packets: 7, bytes: 4021 }
    }

    fn flow(proto: &str, protonum: u8, timeout: u64, original: Side, reply: Side) -> Flow {
        Flow {
            proto: proto.to_owned(),
            protonum,
            timeout,
            state: None,
            original,
            reply,
            replied: true,
            assured: false,
            service: "web".to_owned(),
            server: "10.20.0.11:8080".to_owned(),
            method: "nat".to_owned(),
            shard: 1,
            age: 12,
            marks: Vec::new(),
        }
    }

    fn tcp() -> Flow {
        let original = side("10.0.0.5", "10.0.0.1", 51001, 443);
        let reply = side("10.0.0.1", "10.0.0.5", 443, 51001);
        Flow { state: Some("ESTABLISHED".to_owned()), assured: true, ..flow("tcp", 6, 431_999, original, reply) }
    }

    fn udp() -> Flow {
        let original = side("10.0.0.5", "1.1.1.1", 40000, 53);
        let reply = side("1.1.1.1", "10.0.0.5", 53, 40000);
        Flow { replied: false, ..flow("udp", 17, 29, original, reply) }
    }

    fn icmp() -> Flow {
        flow("icmp", 1, 29, side("10.0.0.5", "10.0.0.1", 6, 6), side("10.0.0.1", "10.0.0.5", 6, 6))
    }

    fn tcp6() -> Flow {
        let original = side("2001:db8:1::2", "2001:db8:f::10", 50000, 80);
        let reply = side("fd20::11", "2001:db8:1::2", 8080, 50000);
        Flow { state: Some("SYN_RECV".to_owned()), ..flow("tcp", 6, 240, original, reply) }
    }

    const WIDE: Style = Style { extended: false, wide: true };
    const EXTENDED: Style = Style { extended: true, wide: false };

    // The first three rows are what `conntrack -L` shows for such flows.
    #[test]
    fn list_lines() {
        let rows = [
            (
                tcp(),
                Style::default(),
                "tcp      6 431999 ESTABLISHED src=10.0.0.5 dst=10.0.0.1 sport=51001 dport=443 src=10.0.0.1 \
                 dst=10.0.0.5 sport=443 dport=51001 [ASSURED] mark=0 use=1",
            ),
            (
                udp(),
                Style::default(),
                "udp      17 29 src=10.0.0.5 dst=1.1.1.1 sport=40000 dport=53 [UNREPLIED] src=1.1.1.1 dst=10.0.0.5 \
                 sport=53 dport=40000 mark=0 use=1",
            ),
            (
                icmp(),
                Style::default(),
                "icmp     1 29 src=10.0.0.5 dst=10.0.0.1 type=8 code=0 id=6 src=10.0.0.1 dst=10.0.0.5 type=0 code=0 \
                 id=6 mark=0 use=1",
            ),
            (
                tcp6(),
                EXTENDED,
                "ipv6     10 tcp      6 240 SYN_RECV src=2001:db8:1::2 dst=2001:db8:f::10 sport=50000 dport=80 \
                 src=fd20::11 dst=2001:db8:1::2 sport=8080 dport=50000 mark=0 use=1",
            ),
            (
                tcp(),
                EXTENDED,
                "ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.5 dst=10.0.0.1 sport=51001 dport=443 \
                 src=10.0.0.1 dst=10.0.0.5 sport=443 dport=51001 [ASSURED] mark=0 use=1",
            ),
            (
                udp(),
                WIDE,
                "udp      17 29 src=10.0.0.5 dst=1.1.1.1 sport=40000 dport=53 packets=7 bytes=4021 [UNREPLIED] \
                 src=1.1.1.1 dst=10.0.0.5 sport=53 dport=40000 packets=7 bytes=4021 mark=0 use=1 service=web \
                 server=10.20.0.11:8080 method=nat shard=1 age=12",
            ),
        ];
        for (flow, style, line) in rows {
            assert_eq!(list_line(&flow, style), line);
        }
    }

    #[test]
    fn event_lines() {
        let event = |change, flow| FlowEvent { change, time: 0, flow };
        let rows = [
            (
                event(Change::New, udp()),
                "    [NEW] udp      17 29 src=10.0.0.5 dst=1.1.1.1 sport=40000 dport=53 [UNREPLIED] src=1.1.1.1 \
                 dst=10.0.0.5 sport=53 dport=40000",
            ),
            (
                event(Change::Update, tcp()),
                " [UPDATE] tcp      6 431999 ESTABLISHED src=10.0.0.5 dst=10.0.0.1 sport=51001 dport=443 src=10.0.0.1 \
                 dst=10.0.0.5 sport=443 dport=51001 [ASSURED]",
            ),
            (
                event(Change::Destroy, tcp()),
                "[DESTROY] tcp      6 src=10.0.0.5 dst=10.0.0.1 sport=51001 dport=443 src=10.0.0.1 dst=10.0.0.5 \
                 sport=443 dport=51001 [ASSURED]",
            ),
        ];
        for (event, line) in rows {
            assert_eq!(event_line(&event, Style::default()), line);
        }
    }

    #[test]
    fn icmpv6_types() {
        let flow = flow("icmpv6", 58, 30, side("fd00::1", "fd00::2", 9, 9), side("fd00::2", "fd00::1", 9, 9));
        assert_eq!(
            list_line(&flow, Style::default()),
            "icmpv6   58 30 src=fd00::1 dst=fd00::2 type=128 code=0 id=9 src=fd00::2 dst=fd00::1 type=129 code=0 \
             id=9 mark=0 use=1"
        );
    }

    // What glibc 2.36's inet_ntop gives for each.
    #[test]
    fn addresses() {
        let rows = [
            ("::", "::"),
            ("::1", "::1"),
            ("::102:304", "::1.2.3.4"),
            ("::1:0", "::0.1.0.0"),
            ("2001:db8::1", "2001:db8::1"),
            ("2001:0:0:1:0:0:0:1", "2001:0:0:1::1"),
            ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
            ("fe80:0:0:0:1:0:0:0", "fe80::1:0:0:0"),
            ("64:ff9b::c000:221", "64:ff9b::c000:221"),
            ("203.0.113.10", "203.0.113.10"),
        ];
        for (address, text) in rows {
            assert_eq!(Address(address.parse().unwrap()).to_string(), text, "{address}");
        }
    }

    #[test]
    fn timestamps_and_summaries() {
        assert_eq!(timestamp(1_700_000_000_000_042), "[1700000000.000042]\t");
        assert_eq!(
            summary(3, "entries have been shown"),
            "conntrack v1.4.7 (conntrack-tools): 3 flow entries have been shown."
        );
    }
}
