//! The record on disk of what was changed, so that it can be undone, by us or by whoever comes after us.
//!
//! One file for each device: a header line, then one line of JSON for each change, written *before* the change is
//! made, and one for each that was undone. The file only grows while the gateway runs and is removed at the end.
//! A file that ends in the middle of a line (the disk was full, the process was killed) loses that line only.
//!
//! The lock on the file (flock(2)) tells whether its gateway lives: the kernel drops it with the process.
//! Interfaces and rules belong to a network namespace, so does the file: one of another namespace or from
//! before the last boot means nothing here.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::change::{Change, LinkProperty};

/// How a change is taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Undo {
    /// It was like that before.
    Nothing,
    /// Remove the rule, route or entry; move the local table back.
    Remove,
    /// The former value of a kernel parameter.
    Value(String),
    Property(LinkProperty),
    /// The forwarding flags that interfaces had, `default` among them.
    Forwarding(Vec<(String, String)>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub id: u64,
    pub change: Change,
    pub undo: Undo,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    gatun_state: u32,
    device: String,
    pid: u32,
    boot: String,
    /// `SO_NETNS_COOKIE`, which unlike an inode number is never given twice.
    netns: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Header(Header),
    Entry(Entry),
    Undone { undone: u64 },
}

const VERSION: u32 = 1;

/// The file of this gateway, locked.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    file: File,
    next: u64,
}

/// What a file said.
#[derive(Debug, Default)]
pub struct Saved {
    pub pid: Option<u32>,
    /// Changes not undone yet, oldest first.
    pub open: Vec<Entry>,
    /// Lines that made no sense.
    pub damaged: usize,
    /// The file is about this namespace and this boot.
    pub here: bool,
}

/// Another gateway of this namespace.
#[derive(Debug)]
pub struct Peer {
    pub live: bool,
    pub open: Vec<Entry>,
}

/// Held while the host is changed or changes are taken back, so that gateways do not do both at a time.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

/// How long another gateway may have the turn. It needs much less.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked whether the turn is free.
const RETRY: Duration = Duration::from_millis(20);

impl Turn {
    /// # Errors
    /// The file cannot be opened, or somebody has had it for [`PATIENCE`] (`WouldBlock`).
    pub async fn take(directory: &Path) -> Result<Turn, Trouble> {
        let begun = Instant::now();
        loop {
            match Turn::try_take(directory) {
                Err(trouble) if trouble.error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < PATIENCE => {
                    sleep(RETRY).await;
                }
                other => return other,
            }
        }
    }

    /// # Errors
    /// The file cannot be opened, or somebody else has it now (`WouldBlock`).
    pub fn try_take(directory: &Path) -> Result<Turn, Trouble> {
        fs::create_dir_all(directory).map_err(|error| Trouble::with(directory, error))?;
        let path = directory.join(".lock");
        let with_path = |error| Trouble::with(&path, error);
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(with_path)?;
        // Whoever may read a file may lock it, and would keep us waiting. That of an earlier version may be read by all.
        if file.metadata().is_ok_and(|about| about.mode() & 0o077 != 0) {
            let _ = file.set_permissions(Permissions::from_mode(0o600));
        }
        lock(&file, libc::LOCK_EX | libc::LOCK_NB).map_err(with_path)?;
        Ok(Turn { _file: file })
    }
}

/// Why there is no record.
#[derive(Debug)]
pub enum Refused {
    /// A live process holds the file.
    InUse(Option<u32>),
    Trouble(Trouble),
}

/// What could not be read or written.
#[derive(Debug)]
pub struct Trouble {
    pub path: PathBuf,
    pub error: io::Error,
}

impl Trouble {
    fn with(path: &Path, error: io::Error) -> Self {
        Trouble { path: path.to_owned(), error }
    }
}

impl Record {
    /// Lock the file of `device` and return what a predecessor left in it.
    pub fn open(directory: &Path, device: &str) -> Result<(Record, Saved), Refused> {
        let path = path(directory, device);
        let trouble = |error| Refused::Trouble(Trouble::with(&path, error));
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).append(true).mode(0o600).open(&path);
        let mut file = file.map_err(trouble)?;
        match lock(&file, libc::LOCK_EX | libc::LOCK_NB) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Refused::InUse(read(&mut file).map_err(trouble)?.pid));
            }
            other => other.map_err(trouble)?,
        }
        let saved = read(&mut file).map_err(trouble)?;
        let next = saved.open.iter().map(|entry| entry.id + 1).max().unwrap_or(0);
        Ok((Record { path, file, next }, saved))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begin anew, with nothing changed.
    pub fn start(&mut self, device: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.next = 0;
        self.line(&Line::Header(Header {
            gatun_state: VERSION,
            device: device.to_owned(),
            pid: std::process::id(),
            boot: boot(),
            netns: netns_cookie()?,
        }))
    }

    /// Say what is about to be changed. Returns the number to name it by in [`Record::undone`].
    pub fn before(&mut self, change: &Change, undo: &Undo) -> io::Result<u64> {
        let id = self.next;
        self.next += 1;
        self.line(&Line::Entry(Entry { id, change: change.clone(), undo: undo.clone() }))?;
        Ok(id)
    }

    pub fn undone(&mut self, id: u64) -> io::Result<()> {
        self.line(&Line::Undone { undone: id })
    }

    /// Everything is as it was.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        // One write: a reader never sees half a line unless the disk is full.
        self.file.write_all(text.as_bytes())
    }
}

/// The other gateways that keep their files in this directory.
pub fn peers(directory: &Path, own: &Path) -> Vec<Peer> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "state") && path != own)
        .filter_map(|path| {
            let mut file = File::open(&path).ok()?;
            // Shared, so that two gateways that look at a third at once do not take each other for it.
            let live = lock(&file, libc::LOCK_SH | libc::LOCK_NB).is_err();
            let saved = read(&mut file).ok()?;
            saved.here.then_some(Peer { live, open: saved.open })
        })
        .collect()
}

fn read(file: &mut File) -> io::Result<Saved> {
    let mut bytes = Vec::new();
    io::Seek::rewind(file)?;
    file.read_to_end(&mut bytes)?;
    let mut saved = parse(&bytes);
    saved.here &= netns_cookie().is_ok_and(|cookie| header_netns(&bytes) == Some(cookie));
    Ok(saved)
}

fn parse(bytes: &[u8]) -> Saved {
    let mut saved = Saved::default();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Line::Header(header)) => {
                saved.pid = Some(header.pid);
                saved.here = header.gatun_state == VERSION && header.boot == boot();
            }
            Ok(Line::Entry(entry)) => saved.open.push(entry),
            Ok(Line::Undone { undone }) => saved.open.retain(|entry| entry.id != undone),
            Err(_) => saved.damaged += 1,
        }
    }
    saved
}

fn header_netns(bytes: &[u8]) -> Option<u64> {
    header(bytes).map(|header| header.netns)
}

fn header(bytes: &[u8]) -> Option<Header> {
    let first = bytes.split(|byte| *byte == b'\n').next()?;
    match serde_json::from_slice(first) {
        Ok(Line::Header(header)) => Some(header),
        _ => None,
    }
}

/// The boot that a record was written in; `None` where it does not say.
pub fn written_in(file: &mut File) -> Option<String> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    header(&bytes).map(|header| header.boot)
}

/// Whether the gateway of a record lives no more. Records are opened by who has the [`Turn`] only, so it stays true
/// for as long as the caller has that.
pub fn is_dead(file: &File) -> bool {
    lock(file, libc::LOCK_EX | libc::LOCK_NB).is_ok()
}

/// `DEVICE.state` in the namespace of process 1; elsewhere the namespace is part of the name, for `/run` is
/// shared between network namespaces and device names are not unique across them.
fn path(directory: &Path, device: &str) -> PathBuf {
    let own = fs::read_link("/proc/thread-self/ns/net").ok();
    let first = fs::read_link("/proc/1/ns/net").ok();
    let inode: Option<String> =
        own.as_ref().and_then(|link| link.to_str()).map(|link| link.chars().filter(char::is_ascii_digit).collect());
    match inode {
        Some(inode) if own != first => directory.join(format!("{device}@{inode}.state")),
        _ => directory.join(format!("{device}.state")),
    }
}

pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Since Linux 5.14; before that 0 for all.
fn netns_cookie() -> io::Result<u64> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut len = std::mem::size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: cookie and len live through the call and len says how large cookie is.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    Ok(if result == 0 { cookie } else { 0 })
}

/// include/uapi/asm-generic/socket.h
const SO_NETNS_COOKIE: libc::c_int = 71;

pub(in crate::io) fn lock(file: &File, operation: libc::c_int) -> io::Result<()> {
    loop {
        // SAFETY: flock(2) takes no pointers, and the descriptor is open as long as `file` lives.
        if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(value: &str) -> Change {
        Change::Sysctl { path: "net/ipv4/conf/eth0/forwarding".into(), value: value.into() }
    }

    #[test]
    fn record_survives_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let (mut record, saved) = Record::open(directory.path(), "gatun0").unwrap();
        assert!(saved.open.is_empty() && !saved.here);
        record.start("gatun0").unwrap();
        let first = record.before(&change("1"), &Undo::Value("0".into())).unwrap();
        record.before(&change("2"), &Undo::Nothing).unwrap();
        record.undone(first).unwrap();
        drop(record);

        let (record, saved) = Record::open(directory.path(), "gatun0").unwrap();
        assert!(saved.here);
        assert_eq!(saved.pid, Some(std::process::id()));
        assert_eq!(saved.damaged, 0);
        assert_eq!(saved.open, [Entry { id: 1, change: change("2"), undo: Undo::Nothing }]);
        record.remove().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_does_not_come_holds_up_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(".lock");
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let first = Turn::try_take(directory.path()).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        let begun = Instant::now();
        let trouble = Turn::take(directory.path()).await.unwrap_err();
        assert_eq!((trouble.path, trouble.error.kind()), (file, io::ErrorKind::WouldBlock));
        assert!((PATIENCE..PATIENCE * 2).contains(&begun.elapsed()));
        // This runs while the other waits.
        let release = tokio::spawn(async move {
            sleep(Duration::from_secs(1)).await;
            drop(first);
        });
        Turn::take(directory.path()).await.unwrap();
        release.await.unwrap();
    }

    #[test]
    fn damaged_record_gives_what_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let (mut record, _) = Record::open(directory.path(), "gatun0").unwrap();
        record.start("gatun0").unwrap();
        record.before(&change("1"), &Undo::Value("0".into())).unwrap();
        record.file.write_all(b"\xff\xfe rubbish\n{\"id\":7,\"change\":{\"rule\"").unwrap();
        drop(record);
        let (_, saved) = Record::open(directory.path(), "gatun0").unwrap();
        assert_eq!(saved.open.len(), 1);
        assert_eq!(saved.damaged, 2);
        assert!(saved.here);
    }

    #[test]
    fn record_of_a_live_gateway_is_refused_and_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let (mut record, _) = Record::open(directory.path(), "gatun0").unwrap();
        record.start("gatun0").unwrap();
        match Record::open(directory.path(), "gatun0") {
            Err(Refused::InUse(pid)) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("expected a refusal, got {other:?}"),
        }
        Record::open(directory.path(), "gatun1").expect("another device is free");
    }

    #[test]
    fn peers_tell_the_living_from_the_dead() {
        let directory = tempfile::tempdir().unwrap();
        let (mut own, _) = Record::open(directory.path(), "gatun0").unwrap();
        own.start("gatun0").unwrap();
        let (mut live, _) = Record::open(directory.path(), "gatun1").unwrap();
        live.start("gatun1").unwrap();
        live.before(&change("1"), &Undo::Nothing).unwrap();
        let (mut dead, _) = Record::open(directory.path(), "gatun2").unwrap();
        dead.start("gatun2").unwrap();
        drop(dead);
        let mut found: Vec<(bool, usize)> =
            peers(directory.path(), own.path()).iter().map(|peer| (peer.live, peer.open.len())).collect();
        found.sort_unstable();
        assert_eq!(found, [(false, 0), (true, 1)]);
    }

    #[test]
    fn record_of_another_boot_or_namespace_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        for (boot, netns) in [("other".to_owned(), netns_cookie().unwrap()), (boot(), 1)] {
            let header = Header { gatun_state: VERSION, device: "gatun0".into(), pid: 1, boot, netns };
            let mut text = serde_json::to_string(&Line::Header(header)).unwrap();
            text.push('\n');
            fs::write(path(directory.path(), "gatun0"), text).unwrap();
            let (_, saved) = Record::open(directory.path(), "gatun0").unwrap();
            assert!(!saved.here);
        }
    }
}
