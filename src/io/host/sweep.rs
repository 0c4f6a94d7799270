//! Records that mean nothing to anybody any more: of an earlier boot, or of a network namespace that is gone with
//! everything that was changed in it.
//!
//! Whether a namespace is gone is known only to who sees every process and every mount: root in the first process
//! namespace, before it gives its capabilities up. Whoever sees less lets every record of this boot be. A socket
//! that outlives its namespace is not looked for: nothing can be undone through it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use tracing::{debug, info};

use super::state::{Turn, boot, is_dead, written_in};

/// Removes the records in `directory` that mean nothing any more, as far as that can be known.
pub fn sweep(directory: &Path) {
    // Who has the turn may sweep as well; and the next start does.
    let Ok(_turn) = Turn::try_take(directory) else { return };
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut existing = None;
    let mut removed = 0;
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_none_or(|extension| extension != "state") {
            continue;
        }
        let Ok(mut file) = File::open(&path) else { continue };
        let Some(made) = written_in(&mut file).filter(|_| is_dead(&file)) else { continue };
        let earlier = !made.is_empty() && !boot().is_empty() && made != boot();
        let forlorn = || {
            let inode = inode_in_name(&path)?;
            let existing =
                existing.get_or_insert_with(|| namespaces().inspect_err(|error| debug!(%error, "namespaces")));
            existing.as_ref().ok().map(|existing| !existing.contains(&inode))
        };
        if (earlier || { forlorn }().unwrap_or(false)) && fs::remove_file(&path).is_ok() {
            removed += 1;
        }
    }
    if removed > 0 {
        info!(removed, "removed records of network namespaces that are gone");
    }
}

/// `None` for a record of the namespace of process 1, which does not go.
fn inode_in_name(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.rsplit_once('@')?.1.parse().ok()
}

/// The inodes of all network namespaces that a process is in, has open, or that are mounted somewhere.
fn namespaces() -> io::Result<BTreeSet<u64>> {
    /// `PROC_PID_INIT_INO` in include/linux/proc_ns.h.
    const FIRST: &str = "pid:[4026531836]";
    if fs::read_link("/proc/self/ns/pid")?.as_os_str() != FIRST {
        return Err(io::Error::other("not every process can be seen from here"));
    }
    let mut found = BTreeSet::new();
    let mut mounts = BTreeSet::new();
    for process in numbered(Path::new("/proc"))? {
        match held(&process, &mut found, &mut mounts) {
            // Where process 1 may not be looked into, by root either, it is the sandbox's keeper; the namespace that it
            // lives in is that of the kernel's threads.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && process == Path::new("/proc/1") => {}
            other => other?,
        }
    }
    Ok(found)
}

/// Adds the network namespaces that a process holds. `mounts`: mount namespaces that were looked through already.
fn held(process: &Path, found: &mut BTreeSet<u64>, mounts: &mut BTreeSet<String>) -> io::Result<()> {
    for thread in gone_is_empty(numbered(&process.join("task")))? {
        found.extend(link(&thread.join("ns/net"))?.as_deref().and_then(inode));
        let mount = link(&thread.join("ns/mnt"))?;
        if mount.is_some_and(|mount| mounts.insert(mount)) {
            found.extend(gone_is_empty(fs::read_to_string(thread.join("mountinfo")))?.lines().filter_map(mounted));
        }
    }
    for file in gone_is_empty(numbered(&process.join("fd")))? {
        found.extend(link(&file)?.as_deref().and_then(inode));
    }
    Ok(())
}

fn numbered(directory: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_number = |path: &Path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
    };
    Ok(entries.filter(|path| is_number(path)).collect())
}

/// A process that ends meanwhile holds nothing any more.
fn gone_is_empty<T: Default>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if is_gone(&error) => Ok(T::default()),
        other => other,
    }
}

fn link(path: &Path) -> io::Result<Option<String>> {
    gone_is_empty(fs::read_link(path).map(|target| Some(target.to_string_lossy().into_owned())))
}

fn is_gone(error: &io::Error) -> bool {
    // EINVAL: the mounts of a process that is just ending.
    error.kind() == io::ErrorKind::NotFound || matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL))
}

/// `net:[4026532000]`.
fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// The network namespace that a line of mountinfo is about: its root is the fourth field (proc_pid_mountinfo(5)).
fn mounted(line: &str) -> Option<u64> {
    line.split(' ').nth(3).and_then(inode)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc;

    use super::super::state::Record;
    use super::*;

    #[test]
    fn what_names_a_namespace() {
        assert_eq!(inode_in_name(Path::new("/run/gatun/gatun0@4026532001.state")), Some(4_026_532_001));
        assert_eq!(inode_in_name(Path::new("/run/gatun/gatun0.state")), None);
        assert_eq!(mounted("57 24 0:4 net:[4026532001] /run/netns/a rw shared:30 - nsfs nsfs rw"), Some(4_026_532_001));
        assert_eq!(mounted("57 24 0:4 / /proc rw shared:30 - proc proc rw"), None);
        assert_eq!(inode("socket:[1]"), None);
    }

    #[test]
    fn the_record_of_an_earlier_boot_goes() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("gatun0.state"), directory.path().join("gatun1.state"));
        let header = |boot: &str| {
            format!("{{\"gatun_state\":1,\"device\":\"gatun0\",\"pid\":1,\"boot\":\"{boot}\",\"netns\":1}}\n")
        };
        fs::write(&path, header("an earlier one")).unwrap();
        fs::write(&other, header(&boot())).unwrap();
        sweep(directory.path());
        assert!(!path.exists());
        assert!(other.exists(), "it may be needed yet");
    }

    #[test]
    fn the_record_of_a_namespace_goes_when_that_is_gone() {
        const NAME: &str = "the_record_of_a_namespace_goes_when_that_is_gone";
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().to_owned();
        let (made, is_made) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let inside = std::thread::spawn(move || {
            // SAFETY: unshare(2) takes no pointers; the namespace is this thread's alone.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                let _ = made.send(Err(io::Error::last_os_error().to_string()));
                return;
            }
            let (mut record, _) = Record::open(&place, "gatun0").unwrap();
            record.start("gatun0").unwrap();
            // The gateway is killed.
            drop(record);
            made.send(Ok(())).unwrap();
            let _ = may_end.recv();
        });
        let reason = is_made.recv().unwrap().err().or_else(|| namespaces().err().map(|error| error.to_string()));
        if let Some(reason) = reason {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{NAME} cannot run: {reason}");
            eprintln!("SKIPPED {NAME}: {reason}");
            if let Some(list) = std::env::var_os("GATUN_SKIPPED") {
                let mut list = fs::OpenOptions::new().create(true).append(true).open(list).unwrap();
                writeln!(list, "{NAME}: {reason}").unwrap();
            }
            return;
        }
        let records = || {
            let entries = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| path.extension().is_some()).count()
        };
        sweep(directory.path());
        assert_eq!(records(), 1, "the namespace is there");
        end.send(()).unwrap();
        inside.join().unwrap();
        // A program that another test starts just then may hold the file, or be in the namespace, for a moment.
        let gone = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            sweep(directory.path());
            records() == 0
        });
        assert!(gone, "the namespace is gone");
    }
}
