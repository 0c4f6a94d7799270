//! `udp`: a datagram is answered as expected; or, where nothing is expected, no ICMP error comes.

use regex_lite::Regex;

use super::{Asked, Asking, Bad, Good, Outcome, Probe, quoted};
use crate::control::health::spec::{Reply, UdpSpec};
use crate::control::health::transport::Connect;

/// Bytes of an answer that are looked at.
const MAX_ANSWER: usize = 4096;

pub struct Udp {
    spec: UdpSpec,
    pattern: Option<Regex>,
}

impl Udp {
    pub fn new(spec: &UdpSpec) -> Result<Udp, String> {
        let pattern = match &spec.expect {
            Some(Reply::Matches(pattern)) => Some(Regex::new(pattern).map_err(|error| format!("expect: {error}"))?),
            _ => None,
        };
        Ok(Udp { spec: spec.clone(), pattern })
    }

    async fn run(&self, asked: &Asked, by: &dyn Connect) -> Outcome {
        let mut exchange = by.datagrams(asked.target).await?;
        exchange.send(&self.spec.payload).await?;
        let mut buffer = [0; MAX_ANSWER];
        let size = exchange.receive(&mut buffer).await?;
        let answer = &buffer[..size.min(MAX_ANSWER)];
        let fits = match &self.spec.expect {
            None | Some(Reply::Any) => true,
            Some(Reply::Begins(bytes)) => answer.starts_with(bytes),
            Some(Reply::Matches(_)) => {
                self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(&String::from_utf8_lossy(answer)))
            }
        };
        match fits {
            true => Ok(Good::said(format!("answered, {size} bytes"))),
            false => Err(Bad::Server(format!("another answer than expected: {}", quoted(answer)))),
        }
    }
}

impl Probe for Udp {
    fn ask<'a>(&'a self, asked: &'a Asked, by: &'a dyn Connect) -> Asking<'a> {
        Box::pin(self.run(asked, by))
    }

    fn silence(&self) -> Option<Good> {
        self.spec.expect.is_none().then(|| Good::said("no ICMP error"))
    }
}
