//! The control socket: a UNIX stream socket that speaks [`super::api`].
//!
//! # What one client can do to others
//!
//! Nothing that lasts. A line is read up to [`Limits::line`] bytes; an answer is written slice by slice, and a client
//! that does not take a slice within [`Limits::write_timeout`] is disconnected, so that at most one slice per client is
//! ever held in memory. Shards are locked for one slice at a time, never while a client is waited for. When all
//! [`Limits::clients`] places are taken, the client that has been silent longest makes room; only if every one is in the
//! middle of a request is the new one turned away.

mod answers;
mod client;
mod line;
mod ops;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;

use super::context::Control;

/// Bounds on what clients may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request, without its end of line: enough for an edit of every server of a large cluster.
    pub line: usize,
    /// Clients at a time.
    pub clients: usize,
    /// For one slice of an answer.
    pub write_timeout: Duration,
    /// A client that asks nothing for so long is disconnected.
    pub idle_timeout: Duration,
    /// Flows copied per lock hold.
    pub slice: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            line: 4 << 20,
            clients: 64,
            write_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            slice: 256,
        }
    }
}

/// A bound socket; the file is removed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// Why the socket could not be made.
#[derive(Debug, Error)]
pub enum BindError {
    #[error("another gatun answers on {0}; stop it, or give this one another path with `control` in [gateway]")]
    InUse(PathBuf),
    #[error("{0} exists and is no socket; remove it, or set another path with `control` in [gateway]")]
    NotASocket(PathBuf),
    #[error("cannot make the control socket {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl Socket {
    /// Binds `path` with mode 0660. Its directory is made if it is missing (0755). A socket that nobody answers on,
    /// left by a daemon that died, is replaced. Must be called within a tokio runtime.
    pub fn bind(path: &Path) -> Result<Socket, BindError> {
        let failed = |source| BindError::Io { path: path.to_owned(), source };
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(failed)?;
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(BindError::InUse(path.to_owned()));
            }
            _ => {}
        }
        // Bound where nobody else can reach it and moved into place with its final mode: at no time does the path have
        // a mode that is too wide, and a stale socket is replaced in one step.
        let private = directory.join(format!(".gatun-{}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&private) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed)?,
        }
        let bound = bind_in(&private, path);
        let _ = fs::remove_file(private.join("s"));
        let _ = fs::remove_dir(&private);
        bound.map_err(failed)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves clients until the future is dropped; then every client is disconnected.
    pub async fn serve(self, control: Arc<Control>, limits: Limits) {
        let clients = Clients::default();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => clients.admit(stream, &control, limits),
                Err(error) => {
                    // Out of descriptors, most likely: others will be closed.
                    tracing::warn!("control socket: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have put another socket in its place.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_in(private: &Path, path: &Path) -> io::Result<Socket> {
    let temporary = private.join("s");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660))?;
    let inode = fs::symlink_metadata(&temporary)?.ino();
    fs::rename(&temporary, path)?;
    Ok(Socket { listener, path: path.to_owned(), inode })
}

/// The clients that are connected.
#[derive(Clone, Default)]
struct Clients(Arc<Mutex<Places>>);

#[derive(Default)]
struct Places {
    next: u64,
    taken: HashMap<u64, Client>,
}

struct Client {
    /// Since when it has been waited for; `None` in the middle of a request.
    silent_since: Option<Instant>,
    task: AbortHandle,
}

impl Clients {
    fn admit(&self, stream: UnixStream, control: &Arc<Control>, limits: Limits) {
        let mut places = self.0.lock();
        if places.taken.len() >= limits.clients && !places.evict_one() {
            drop(places);
            tokio::spawn(client::turn_away(stream, limits));
            return;
        }
        let number = places.next;
        places.next += 1;
        let place = Place { number, clients: self.clone() };
        let task = tokio::spawn(client::serve(stream, control.clone(), limits, place)).abort_handle();
        places.taken.insert(number, Client { silent_since: Some(Instant::now()), task });
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for client in self.taken.values() {
            client.task.abort();
        }
    }
}

impl Places {
    /// Disconnects the client that has been silent longest.
    fn evict_one(&mut self) -> bool {
        let silent = self.taken.iter().filter_map(|(number, client)| Some((client.silent_since?, *number)));
        let Some((_, number)) = silent.min() else { return false };
        if let Some(client) = self.taken.remove(&number) {
            client.task.abort();
        }
        true
    }
}

/// A client's place; given back when its task ends, however it ends.
struct Place {
    number: u64,
    clients: Clients,
}

impl Place {
    fn silent(&self, silent: bool) {
        if let Some(client) = self.clients.0.lock().taken.get_mut(&self.number) {
            client.silent_since = silent.then(Instant::now);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.0.lock().taken.remove(&self.number);
    }
}
