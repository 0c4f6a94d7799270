//! A line of `gatun conntrack list`, read strictly by the format of conntrack-tools: what scripts made for conntrack rely
//! on is checked wherever a test looks at a flow.

use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

#[derive(Clone, Debug, PartialEq)]
pub struct FlowLine {
    /// `tcp`, `udp`, `icmp`…
    pub protocol: String,
    pub number: u8,
    /// Seconds until it expires.
    pub timeout: u64,
    /// TCP's only.
    pub state: Option<String>,
    pub original: Direction,
    pub unreplied: bool,
    pub reply: Direction,
    pub assured: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Direction {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// sport and dport, or type, code and id.
    pub ports: (u16, u16),
}

const STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

impl FromStr for FlowLine {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<FlowLine> {
        // "%-8s %u %u " : the name is padded to eight columns, and a space follows.
        ensure!(line.len() > 9 && line.is_char_boundary(9), "too short");
        let (name, rest) = line.split_at(9);
        let protocol = name.trim_end().to_string();
        ensure!(format!("{protocol:<8} ") == name, "the protocol's name is not padded to eight columns");
        ensure!(!rest.starts_with(' ') && !rest.contains("  "), "two spaces after the protocol");
        let mut words = rest.split(' ').peekable();
        let mut next = |what: &'static str| words.next().context(what);
        let number = next("protocol number")?.parse().context("protocol number")?;
        let timeout = next("timeout")?.parse().context("timeout")?;
        let state = match protocol.as_str() {
            "tcp" | "sctp" => Some(next("state")?.to_string()),
            _ => None,
        };
        if let Some(state) = &state {
            ensure!(STATES.contains(&state.as_str()), "no state of conntrack-tools: {state}");
        }
        let icmp = protocol.starts_with("icmp");
        let rest: Vec<&str> = words.collect();
        let mut fields = rest.as_slice();
        let original = direction(&mut fields, icmp)?;
        let unreplied = flag(&mut fields, "[UNREPLIED]");
        let reply = direction(&mut fields, icmp)?;
        let assured = flag(&mut fields, "[ASSURED]");
        ensure!(fields == ["mark=0", "use=1"], "the end of the line: {fields:?}");
        Ok(FlowLine { protocol, number, timeout, state, original, unreplied, reply, assured })
    }
}

fn direction(fields: &mut &[&str], icmp: bool) -> Result<Direction> {
    let src = value(fields, "src")?.parse().context("src")?;
    let dst = value(fields, "dst")?.parse().context("dst")?;
    let ports = if icmp {
        let kind: u16 = value(fields, "type")?.parse().context("type")?;
        ensure!(value(fields, "code")? == "0", "code");
        (kind, value(fields, "id")?.parse().context("id")?)
    } else {
        (value(fields, "sport")?.parse().context("sport")?, value(fields, "dport")?.parse().context("dport")?)
    };
    Ok(Direction { src, dst, ports })
}

fn value<'a>(fields: &mut &[&'a str], key: &str) -> Result<&'a str> {
    let Some((first, rest)) = fields.split_first() else { bail!("the line ends where {key}= is due") };
    let value = first
        .strip_prefix(key)
        .and_then(|v| v.strip_prefix('='))
        .with_context(|| format!("{key}= is due, not {first}"))?;
    *fields = rest;
    Ok(value)
}

fn flag(fields: &mut &[&str], flag: &str) -> bool {
    match fields.split_first() {
        Some((first, rest)) if *first == flag => {
            *fields = rest;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::FlowLine;

    /// Lines as conntrack-tools prints them.
    #[test]
    fn the_lines_of_conntrack_tools_parse() {
        let tcp: FlowLine = "tcp      6 431999 ESTABLISHED src=10.0.0.5 dst=10.0.0.1 sport=51001 dport=443 \
             src=10.0.0.1 dst=10.0.0.5 sport=443 dport=51001 [ASSURED] mark=0 use=1"
            .parse()
            .expect("a line of conntrack -L");
        assert_eq!((tcp.timeout, tcp.assured, tcp.unreplied), (431_999, true, false));
        assert_eq!(tcp.original.ports, (51001, 443));
        let icmp: FlowLine = "icmp     1 29 src=10.0.0.5 dst=10.0.0.1 type=8 code=0 id=6 src=10.0.0.1 dst=10.0.0.5 \
             type=0 code=0 id=6 mark=0 use=1"
            .parse()
            .expect("a line of conntrack -L");
        assert_eq!(icmp.reply.ports, (0, 6));
    }

    #[test]
    fn other_lines_do_not() {
        for line in [
            "tcp 6 431999 ESTABLISHED src=10.0.0.5 dst=10.0.0.1 sport=1 dport=2 src=10.0.0.1 dst=10.0.0.5 sport=2 dport=1 mark=0 use=1",
            "udp      17 29 src=10.0.0.5 dst=1.1.1.1 sport=1 dport=53 src=1.1.1.1 dst=10.0.0.5 sport=53 dport=1",
            "tcp      6 9 src=10.0.0.5 dst=10.0.0.1 sport=1 dport=2 src=10.0.0.1 dst=10.0.0.5 sport=2 dport=1 mark=0 use=1",
            "",
        ] {
            assert!(line.parse::<FlowLine>().is_err(), "{line}");
        }
    }
}
