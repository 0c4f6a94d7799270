//! Starting a program that outlives its starter, under a lock that it holds for as long as it lives.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::host::lock;

/// A locked file. The lock (flock(2)) belongs to the open file: whoever inherits it holds it as well.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the lock of the file at `path`, which is made if there is none; `None` while somebody else has it.
    pub fn take(path: &Path) -> io::Result<Option<Lock>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match lock(&file, libc::LOCK_EX | libc::LOCK_NB) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other?,
        }
        // Whoever had it may have removed the file.
        let there = std::fs::metadata(path).is_ok_and(|found| {
            file.metadata().is_ok_and(|ours| (ours.dev(), ours.ino()) == (found.dev(), found.ino()))
        });
        Ok(there.then_some(Lock(file)))
    }
}

/// Starts `command` in a session of its own, with `lock` as its standard input and `log` as its output.
pub fn spawn(command: &mut Command, lock: Lock, log: &File) -> io::Result<Child> {
    command.stdin(Stdio::from(lock.0)).stdout(log.try_clone()?).stderr(log.try_clone()?);
    // SAFETY: between fork and exec only setsid(2) runs, a plain system call.
    unsafe {
        command.pre_exec(|| if libc::setsid() == -1 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_by_who_was_started_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let (path, log) = (directory.path().join("lock"), directory.path().join("log"));
        let held = Lock::take(&path).unwrap().expect("nobody has it");
        assert!(Lock::take(&path).unwrap().is_none());
        let mut child = spawn(Command::new("sleep").arg("60"), held, &File::create(log).unwrap()).unwrap();
        assert!(Lock::take(&path).unwrap().is_none(), "the program has it");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Lock::take(&path).unwrap().is_some());
    }
}
