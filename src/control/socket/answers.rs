//! The same socket for a daemon that is asked for its status only: one line, one answer.

use std::io;
use std::sync::Arc;

use serde::Serialize;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::client::{self, Out};
use super::line::{Line, Lines};
use super::{Limits, Socket, ops};
use crate::control::api::{self, Fault, FaultCode, Request};

impl Socket {
    /// Answers `ping` and `status` until the future is dropped. When all places are taken a client is turned away.
    pub async fn answer<T: Serialize>(
        self,
        limits: Limits,
        status: impl Fn() -> T + Clone + Send + Sync + 'static,
    ) -> &'static str {
        let places = Arc::new(Semaphore::new(limits.clients));
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                tokio::spawn(client::turn_away(stream, limits));
                continue;
            };
            let status = status.clone();
            tokio::spawn(async move {
                if let Err(error) = serve(stream, limits, status).await {
                    tracing::debug!("control client: {error}");
                }
                drop(place);
            });
        }
    }
}

async fn serve<T: Serialize>(stream: UnixStream, limits: Limits, status: impl Fn() -> T) -> io::Result<()> {
    let (read, write) = stream.into_split();
    let mut lines = Lines::new(BufReader::new(read), limits.line);
    let mut out = Out::new(write, limits);
    loop {
        match timeout(limits.idle_timeout, lines.next()).await?? {
            Line::Text(line) if line.iter().all(u8::is_ascii_whitespace) => {}
            Line::Text(line) => {
                match ops::parse(&line) {
                    Ok(Request::Ping {}) => out.ok(&api::Pong::ours()),
                    Ok(Request::Status {}) => out.ok(&status()),
                    Ok(_) => out.fault(Fault::new(FaultCode::NotSupported, "a real server answers ping and status")),
                    Err(fault) => out.fault(fault),
                }
                out.flush().await?;
            }
            Line::TooLong => {
                out.fault(Fault::new(FaultCode::TooLong, format!("the line is longer than {} bytes", limits.line)));
                return out.flush().await;
            }
            Line::End => return Ok(()),
        }
    }
}
