//! `http` and `https`: a request gets a response of the right status, and if so wanted with the right body.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use md5::{Digest, Md5};
use regex_lite::Regex;

use super::tls::{self, Tls};
use super::{Asked, Asking, Bad, Good, Outcome, Probe};
use crate::control::health::spec::{HttpSpec, HttpVersion};
use crate::control::health::transport::{Connect, Stream};

/// Bytes of the head of a response.
const MAX_HEAD: usize = 64 << 10;
/// Bytes of a body that are searched for a pattern, which happens on the control thread, in one go.
const MAX_SEARCHED: usize = 64 << 10;
/// Bytes of a body that are summed.
const MAX_SUMMED: usize = 64 << 20;
/// Bytes of a body that nobody looks at, read so that the server sees its answer taken.
const MAX_IGNORED: usize = 64 << 10;

pub struct Http {
    spec: HttpSpec,
    body: Option<Regex>,
    tls: Option<Tls>,
}

impl Http {
    pub fn new(spec: &HttpSpec) -> Result<Http, String> {
        let body = spec.body.as_deref().map(Regex::new).transpose();
        Ok(Http {
            body: body.map_err(|error| format!("body: {error}"))?,
            tls: spec.tls.as_ref().map(|tls| Tls::new(tls, spec.host.as_deref())).transpose()?,
            spec: spec.clone(),
        })
    }

    async fn run(&self, asked: &Asked, by: &dyn Connect) -> Outcome {
        let stream = by.stream(asked.target).await?;
        match &self.tls {
            None => self.exchange(stream, asked.target.address).await,
            Some(tls) => {
                self.exchange(tls.handshake(stream, asked.target.address.ip()).await?, asked.target.address).await
            }
        }
    }

    async fn exchange(&self, stream: impl Stream, server: SocketAddr) -> Outcome {
        let request = self.request(server)?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(bad)?;
        let mut answer = pin!(async { self.judge(sender.send_request(request).await.map_err(bad)?).await });
        let mut connection = pin!(connection);
        let mut is_over = false;
        loop {
            tokio::select! {
                outcome = &mut answer => return outcome,
                // The answer may still be on its way from there to here.
                _ = &mut connection, if !is_over => is_over = true,
            }
        }
    }

    fn request(&self, server: SocketAddr) -> Result<Request<Empty<Bytes>>, Bad> {
        let version = match self.spec.version {
            HttpVersion::V1_0 => Version::HTTP_10,
            HttpVersion::V1_1 => Version::HTTP_11,
        };
        let request = Request::builder()
            .method(self.spec.method.as_str())
            .uri(&self.spec.path)
            .version(version)
            .header(HOST, self.host(server))
            .header(USER_AGENT, concat!("gatun/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "*/*")
            .header(CONNECTION, "close");
        request.body(Empty::new()).map_err(|error| Bad::Ours(error.to_string()))
    }

    /// RFC 9110 section 7.2: with the port unless it is the scheme's own.
    fn host(&self, server: SocketAddr) -> String {
        let own_port = if self.tls.is_some() { 443 } else { 80 };
        match (&self.spec.host, server.ip()) {
            (Some(host), _) => host.clone(),
            (None, _) if server.port() != own_port => server.to_string(),
            (None, IpAddr::V4(ip)) => ip.to_string(),
            (None, IpAddr::V6(ip)) => format!("[{ip}]"),
        }
    }

    async fn judge(&self, response: Response<Incoming>) -> Outcome {
        let status = response.status().as_u16();
        if !self.spec.expect.contains(status) {
            return Err(Bad::Server(format!("status {status}, not {}", self.spec.expect)));
        }
        let limit = match (&self.spec.digest, &self.body) {
            (Some(_), _) => MAX_SUMMED,
            (None, Some(_)) => MAX_SEARCHED,
            (None, None) => MAX_IGNORED,
        };
        let (mut sum, mut searched, mut size) = (Md5::new(), Vec::new(), 0);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(bad)?;
            let Some(bytes) = frame.data_ref() else { continue };
            size += bytes.len();
            if self.spec.digest.is_some() {
                sum.update(bytes);
            }
            if self.body.is_some() {
                let room = MAX_SEARCHED - searched.len();
                searched.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            if size > limit {
                break;
            }
        }
        if let Some(digest) = &self.spec.digest
            && (size > limit || sum.finalize().as_slice() != digest)
        {
            return Err(Bad::server("the body has another digest"));
        }
        if let Some(pattern) = &self.body
            && !pattern.is_match(&String::from_utf8_lossy(&searched))
        {
            return Err(Bad::server("the pattern is not in the body"));
        }
        Ok(Good::said(format!("status {status}")))
    }
}

impl Probe for Http {
    fn ask<'a>(&'a self, asked: &'a Asked, by: &'a dyn Connect) -> Asking<'a> {
        Box::pin(self.run(asked, by))
    }
}

fn bad(error: hyper::Error) -> Bad {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause {
        Some(cause) => tls::alert(cause).unwrap_or_else(|| io::Error::new(cause.kind(), cause.to_string()).into()),
        None if error.is_incomplete_message() => Bad::server("closed before the answer was complete"),
        None if error.is_parse() => Bad::Server(format!("no HTTP: {error}")),
        None => Bad::Server(error.to_string()),
    }
}
