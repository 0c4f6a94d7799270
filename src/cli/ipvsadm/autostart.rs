//! Which gateway ipvsadm is about, and how one is started.
//!
//! The kernel's IPVS has a table for every network namespace, there whenever it is asked for. So, unless one is named: the
//! gateway is the one behind the usual control socket, if its process lives in the caller's network namespace; else one that
//! was started on demand for this namespace, in a directory of its own, `ns-INODE`. That directory has its configuration,
//! control socket, log, and a lock.
//!
//! The lock is what orders everything: the gateway is started with it and holds it until its process has ended. Whoever finds
//! it taken waits until the gateway answers, or until the lock is free because the gateway has stopped just now.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cli::DEFAULT_CONTROL;
use crate::cli::client::Client;
use crate::control::api::{self, Request};
use crate::io::detach::{self, Lock};
use crate::io::host::STATE_DIRECTORY;
use crate::io::link_mtu;
use crate::io::netns::{Netns, peer_pid};

/// For a gateway to start, or for one that is stopping to end.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Names that are tried for a device.
const DEVICES: u32 = 100;

/// Where the gateway is, or would be.
pub enum Place {
    /// The operator says so.
    Named(PathBuf),
    Here(Here),
}

/// This network namespace.
pub struct Here {
    netns: Option<Netns>,
    /// Below it are the directories of gateways that were started on demand.
    directories: PathBuf,
    directory: PathBuf,
}

impl Place {
    pub fn new(control: Option<PathBuf>) -> Place {
        if let Some(control) = control {
            return Place::Named(control);
        }
        let netns = Netns::own().ok();
        let inode = netns.map_or(0, |netns| netns.inode);
        // As `gatun run` takes it, which the gateway will be.
        let named = std::env::var_os("GATUN_STATE_DIR").filter(|directory| !directory.is_empty());
        let directories = named.map_or_else(|| PathBuf::from(STATE_DIRECTORY), PathBuf::from);
        let directory = directories.join(format!("ns-{inode}"));
        Place::Here(Here { netns, directories, directory })
    }

    /// A connection to the gateway; `None` where none runs.
    ///
    /// # Errors
    /// The one that was named does not answer.
    pub fn client(&self) -> Result<Option<Client>> {
        match self {
            Place::Named(control) => Client::connect(control).map(Some),
            Place::Here(here) => match here.control() {
                Some(control) => Client::connect(&control).map(Some),
                None => Ok(None),
            },
        }
    }

    /// Starts a gateway where none answers; when this returns one does.
    pub fn start(&self) -> Result<()> {
        match self {
            Place::Named(control) => Client::connect(control).map(drop),
            Place::Here(here) => here.start(),
        }
    }
}

/// Where every other command looks for the gateway when it is not told: the usual place, unless nobody answers there and a
/// gateway was started on demand for this network namespace.
pub fn default_socket() -> PathBuf {
    let usual = PathBuf::from(DEFAULT_CONTROL);
    let is_there = UnixStream::connect(&usual).is_ok();
    match Place::new(None) {
        Place::Here(here) if !is_there && here.lives_here(&here.socket()).unwrap_or(false) => here.socket(),
        _ => usual,
    }
}

impl Here {
    /// The socket of a gateway that lives in this namespace.
    fn control(&self) -> Option<PathBuf> {
        let sockets = [PathBuf::from(DEFAULT_CONTROL), self.socket()];
        sockets.into_iter().find(|socket| self.lives_here(socket).unwrap_or(false))
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    fn lives_here(&self, socket: &Path) -> std::io::Result<bool> {
        let peer = peer_pid(&UnixStream::connect(socket)?)?;
        Ok(self.netns == Some(Netns::of(peer)?))
    }

    fn start(&self) -> Result<()> {
        let directory = || format!("cannot start a gateway in {}", self.directory.display());
        let lock = self.directory.join("lock");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.control().is_some_and(|control| answers(&control)) {
                return Ok(());
            }
            fs::create_dir_all(&self.directory).with_context(directory)?;
            // The directory may go with a gateway that is just ending.
            match Lock::take(&lock) {
                Ok(Some(lock)) => return self.launch(lock),
                Ok(None) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(directory),
            }
            if Instant::now() >= deadline {
                bail!("the gateway of this network namespace neither starts nor ends: see {}", self.log().display());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Starts the gateway and waits until it answers.
    fn launch(&self, lock: Lock) -> Result<()> {
        remove_leftovers(&self.directories, &self.directory);
        let config = self.directory.join("gatun.toml");
        let what = || format!("cannot start a gateway in {}", self.directory.display());
        fs::write(&config, self.config()?).with_context(what)?;
        let log = File::create(self.log()).with_context(what)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("gatun").arg("run").arg("-c").arg(&config).arg("--on-demand").arg(&self.directory);
        // The file names the socket.
        command.env_remove("GATUN_CONTROL").current_dir("/");
        let mut child = detach::spawn(&mut command, lock, &log).with_context(what)?;
        self.await_answer(&mut child)
    }

    fn await_answer(&self, child: &mut Child) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !answers(&self.socket()) {
            if child.try_wait()?.is_some() {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                let last = log.lines().rev().find(|line| line.starts_with("gatun: ")).unwrap_or("gatun: it ended");
                bail!("no gateway could be started in this network namespace: {}", last.trim_start_matches("gatun: "));
            }
            if Instant::now() >= deadline {
                let _ = child.kill();
                bail!("a gateway was started and does not answer: see {}", self.log().display());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn config(&self) -> Result<String> {
        let device = free_device()?;
        let inode = self.netns.map_or(0, |netns| netns.inode);
        Ok(format!(
            "# Written by ipvsadm for network namespace {inode}; goes with the gateway.\n\n\
             [gateway]\ndevice = \"{device}\"\ncontrol = \"{}\"\nmetrics = \"off\"\n\n[conntrack]\nprofile = \"ipvs\"\n",
            self.socket().display()
        ))
    }
}

fn answers(socket: &Path) -> bool {
    Client::connect(socket).is_ok_and(|mut client| client.call::<api::Pong>(&Request::Ping {}).is_ok())
}

/// The next name that no interface has.
fn free_device() -> Result<String> {
    let mut names = (0..DEVICES).map(|number| format!("gatun{number}"));
    names.find(|name| link_mtu(name).is_err()).context("there are interfaces gatun0 to gatun99 already")
}

/// Directories of gateways that are gone without having removed them: killed, or from before the last boot.
fn remove_leftovers(directories: &Path, own: &Path) {
    let Ok(entries) = fs::read_dir(directories) else { return };
    for directory in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let is_one = directory.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ns-"));
        if is_one && directory != own && matches!(Lock::take(&directory.join("lock")), Ok(Some(_))) {
            let _ = fs::remove_dir_all(&directory);
        }
    }
}
