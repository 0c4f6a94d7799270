//! One client of the control socket.

use std::io;
use std::sync::Arc;

use serde::Serialize;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::time::timeout;

use super::line::{Line, Lines};
use super::{Limits, Place, ops};
use crate::control::api::{self, Fault, FaultCode};
use crate::control::context::Control;

/// Answers one request after the other until the client goes.
pub(super) async fn serve(stream: UnixStream, control: Arc<Control>, limits: Limits, place: Place) {
    let (read, write) = stream.into_split();
    let mut lines = Lines::new(BufReader::new(read), limits.line);
    let mut out = Out::new(write, limits);
    if let Err(error) = answer_all(&mut lines, &mut out, &control, &place).await {
        tracing::debug!("control client: {error}");
    }
}

/// Tells a client that there is no room for it.
pub(super) async fn turn_away(stream: UnixStream, limits: Limits) {
    let (_read, write) = stream.into_split();
    let mut out = Out::new(write, limits);
    out.fault(Fault::new(FaultCode::Busy, format!("{} clients are connected and busy; try again", limits.clients)));
    let _ = out.flush().await;
}

async fn answer_all(lines: &mut Lines, out: &mut Out, control: &Arc<Control>, place: &Place) -> io::Result<()> {
    loop {
        place.silent(true);
        let line = timeout(out.limits.idle_timeout, lines.next()).await??;
        place.silent(false);
        match line {
            Line::Text(line) if line.iter().all(u8::is_ascii_whitespace) => {}
            Line::Text(line) => {
                if let Err(fault) = ops::perform(&line, control, lines, out).await? {
                    out.fault(fault);
                }
                out.flush().await?;
            }
            Line::TooLong => {
                // Where the next line starts is not known, so the conversation ends here.
                let message = format!("the line is longer than {} bytes", out.limits.line);
                out.fault(Fault::new(FaultCode::TooLong, message));
                return out.flush().await;
            }
            Line::End => return Ok(()),
        }
    }
}

/// The way to the client: lines are collected and written together, under a time limit.
pub(super) struct Out {
    write: OwnedWriteHalf,
    buffer: Vec<u8>,
    pub(super) limits: Limits,
}

#[derive(Serialize)]
struct Reply<'a, T> {
    v: u64,
    #[serde(flatten)]
    body: Body<'a, T>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Body<'a, T> {
    Ok(&'a T),
    Item(&'a T),
    Lost(u64),
    Started(bool),
    Error(Fault),
}

impl Out {
    pub(super) fn new(write: OwnedWriteHalf, limits: Limits) -> Out {
        Out { write, buffer: Vec::new(), limits }
    }

    pub(super) fn ok(&mut self, result: &impl Serialize) {
        self.line(Body::Ok(result));
    }

    pub(super) fn item(&mut self, item: &impl Serialize) {
        self.line(Body::Item(item));
    }

    pub(super) fn lost(&mut self, lost: u64) {
        self.line::<()>(Body::Lost(lost));
    }

    pub(super) fn started(&mut self) {
        self.line::<()>(Body::Started(true));
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        self.line::<()>(Body::Error(fault));
    }

    fn line<T: Serialize>(&mut self, body: Body<'_, T>) {
        let start = self.buffer.len();
        match serde_json::to_writer(&mut self.buffer, &Reply { v: api::VERSION, body }) {
            Ok(()) => self.buffer.push(b'\n'),
            // Only a map with keys that are no strings fails, and there is none; half a line must not go out, though.
            Err(error) => {
                tracing::error!("control socket: {error}");
                self.buffer.truncate(start);
            }
        }
    }

    /// Writes what was collected. A client that does not take it in time is given up.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        timeout(self.limits.write_timeout, self.write.write_all(&self.buffer)).await??;
        self.buffer.clear();
        Ok(())
    }
}
