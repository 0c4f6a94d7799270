//! The command line's end of the control socket.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::control::api::{self, Answer, Fault, Request};

/// A daemon that says nothing for so long is stuck. A reload may have to wait for the host's answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a running gateway.
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

/// The last line of an answer, when it is known what that is.
#[derive(Deserialize)]
#[serde(bound(deserialize = "T: DeserializeOwned"))]
struct Outcome<T> {
    #[serde(default = "Option::default")]
    ok: Option<T>,
    error: Option<Fault>,
}

/// What a stream hands over.
#[derive(Debug)]
pub enum Part<T> {
    Started,
    Item(T),
    Lost(u64),
}

impl Client {
    pub fn connect(path: &Path) -> Result<Client> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                anyhow!(
                    "no gateway answers on {}: start one with `gatun run`, or name its socket with --control",
                    path.display()
                )
            }
            ErrorKind::PermissionDenied => {
                anyhow!("no permission for {}: run this as root or as a member of the socket's group", path.display())
            }
            _ => anyhow!("cannot connect to {}: {error}", path.display()),
        })?;
        Ok(Client { stream: BufReader::new(stream), path: path.to_owned() })
    }

    /// One question, one answer. An error that is a [`Fault`] is the gateway's own; all others are the connection's.
    pub fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T> {
        self.send(request)?;
        self.patience(Some(PATIENCE))?;
        let line = self.line()?.ok_or_else(|| self.hung_up())?;
        // Without the detour over values that know no type: the status of a large cluster has megabytes.
        match serde_json::from_slice(&line) {
            Ok(Outcome { ok: Some(result), .. }) => Ok(result),
            Ok(Outcome { error: Some(fault), .. }) => Err(fault.into()),
            _ => bail!(self.not_understood()),
        }
    }

    /// One question, a stream of items, then the result. `None` when the daemon ended meanwhile. Without
    /// `patience` an item may take forever.
    pub fn stream<T: DeserializeOwned, R: DeserializeOwned>(
        &mut self,
        request: &Request,
        patience: bool,
        mut each: impl FnMut(Part<T>) -> Result<()>,
    ) -> Result<Option<R>> {
        self.send(request)?;
        self.patience(patience.then_some(PATIENCE))?;
        while let Some(answer) = self.answer()? {
            match answer {
                Answer { item: Some(item), .. } => each(Part::Item(self.understand(item)?))?,
                Answer { lost: Some(lost), .. } => each(Part::Lost(lost))?,
                Answer { started: Some(_), .. } => each(Part::Started)?,
                Answer { ok: Some(result), .. } => return self.understand(result).map(Some),
                Answer { error: Some(fault), .. } => bail!(fault.message),
                _ => bail!(self.not_understood()),
            }
        }
        Ok(None)
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        let mut line = Map::new();
        line.insert("v".to_owned(), api::VERSION.into());
        if let Value::Object(fields) = serde_json::to_value(request).context("the request is no JSON")? {
            line.extend(fields);
        }
        let mut line = Value::Object(line).to_string();
        line.push('\n');
        // The errors of the socket become text: a broken pipe here is not that of our own output.
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|error| self.broken(&error))
    }

    fn patience(&self, patience: Option<Duration>) -> Result<()> {
        self.stream.get_ref().set_read_timeout(patience).map_err(|error| self.broken(&error))
    }

    fn answer(&mut self) -> Result<Option<Answer>> {
        let Some(line) = self.line()? else { return Ok(None) };
        serde_json::from_slice(&line).map(Some).map_err(|_| anyhow!(self.not_understood()))
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => anyhow!("the gateway on {} does not answer", self.path.display()),
            _ => self.broken(&error),
        })?;
        Ok(Some(line).filter(|line| !line.is_empty()))
    }

    fn understand<T: DeserializeOwned>(&self, value: Value) -> Result<T> {
        serde_json::from_value(value).map_err(|_| anyhow!(self.not_understood()))
    }

    fn broken(&self, error: &std::io::Error) -> anyhow::Error {
        anyhow!("the connection to {} broke: {error}", self.path.display())
    }

    fn hung_up(&self) -> anyhow::Error {
        anyhow!("the gateway on {} hung up without an answer", self.path.display())
    }

    fn not_understood(&self) -> String {
        format!("what answers on {} is no gatun, or a much older or newer one", self.path.display())
    }
}
