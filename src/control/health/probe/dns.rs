//! `dns`: a query gets a response with the right code, and if so wanted with certain addresses (RFC 1035).

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::str::FromStr;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Asked, Asking, Bad, Good, Outcome, Probe};
use crate::control::health::spec::DnsSpec;
use crate::control::health::transport::Connect;

/// Bytes of a response over UDP (EDNS allows no more than was offered, and nothing is).
const MAX_DATAGRAM: usize = 4096;
/// Datagrams that are no answer to the query, until it is given up.
const MAX_OTHERS: usize = 16;

pub struct Dns {
    spec: DnsSpec,
    query: Query,
}

impl Dns {
    pub fn new(spec: &DnsSpec) -> Result<Dns, String> {
        let mut name = Name::from_ascii(&spec.name).map_err(|error| format!("name {:?}: {error}", spec.name))?;
        name.set_fqdn(true);
        let kind = RecordType::from_str(&spec.query).map_err(|error| format!("query {:?}: {error}", spec.query))?;
        Ok(Dns { spec: spec.clone(), query: Query::query(name, kind) })
    }

    async fn run(&self, asked: &Asked, by: &dyn Connect) -> Outcome {
        let id = RandomState::new().hash_one(()) as u16;
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(self.query.clone());
        let query = message.to_vec().map_err(|error| Bad::Ours(error.to_string()))?;
        let response = if self.spec.over_tcp {
            self.by_stream(id, &query, asked, by).await
        } else {
            self.by_datagrams(id, &query, asked, by).await
        };
        self.judge(&response?)
    }

    async fn by_datagrams(&self, id: u16, query: &[u8], asked: &Asked, by: &dyn Connect) -> Result<Message, Bad> {
        let mut exchange = by.datagrams(asked.target).await?;
        exchange.send(query).await?;
        let mut buffer = vec![0; MAX_DATAGRAM];
        for _ in 0..MAX_OTHERS {
            let size = exchange.receive(&mut buffer).await?;
            if let Some(message) = self.response(id, &buffer[..size.min(MAX_DATAGRAM)]) {
                return Ok(message);
            }
        }
        Err(Bad::server("datagrams that are no response to the query"))
    }

    /// Each message has its length in front (RFC 1035 section 4.2.2).
    async fn by_stream(&self, id: u16, query: &[u8], asked: &Asked, by: &dyn Connect) -> Result<Message, Bad> {
        let mut stream = by.stream(asked.target).await?;
        let length = u16::try_from(query.len()).map_err(|_| Bad::Ours("the query is too long".to_owned()))?;
        stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
        stream.flush().await?;
        let mut response = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut response).await?;
        self.response(id, &response).ok_or_else(|| Bad::server("what came is no response to the query"))
    }

    fn response(&self, id: u16, bytes: &[u8]) -> Option<Message> {
        let message = Message::from_vec(bytes).ok()?;
        let is_ours = message.metadata.id == id && message.metadata.message_type == MessageType::Response;
        // A refusal may come without the question.
        let same = |query: &Query| query.name == self.query.name && query.query_type == self.query.query_type;
        (is_ours && message.queries.first().is_none_or(same)).then_some(message)
    }

    fn judge(&self, response: &Message) -> Outcome {
        let code = response.metadata.response_code;
        if u16::from(code) != self.spec.rcode {
            let wanted = ResponseCode::from(0, self.spec.rcode as u8);
            return Err(Bad::Server(format!("the response is {code:?}, not {wanted:?}")));
        }
        let found: Vec<IpAddr> = response.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
        if let Some(missing) = self.spec.answer.iter().find(|address| !found.contains(address)) {
            return Err(Bad::Server(format!("{missing} is not in the answer")));
        }
        Ok(Good::said(format!("{code:?}, {} records", response.answers.len())))
    }
}

impl Probe for Dns {
    fn ask<'a>(&'a self, asked: &'a Asked, by: &'a dyn Connect) -> Asking<'a> {
        Box::pin(self.run(asked, by))
    }
}
