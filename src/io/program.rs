//! Programs that the gateway runs: with nothing on their standard input, a bounded part of their output kept, and killed with
//! all they have started when nobody waits for them any more.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// Bytes of what a program prints that are kept; the rest is read and thrown away.
const MAX_OUTPUT: usize = 4096;
/// How long the output of a program is read when it has ended.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Linux `_LINUX_CAPABILITY_VERSION_3` (include/uapi/linux/capability.h).
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// What is to be run.
pub struct Program<'a> {
    /// The absolute path and the arguments; not empty.
    pub command: &'a [String],
    /// Besides `PATH`; nothing else is passed on.
    pub environment: &'a [(&'static str, String)],
    pub privileges: Privileges,
}

/// What a program may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privileges {
    /// It has no capability.
    None,
    /// What the gateway has kept.
    Ours,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// `None`: by a signal.
    pub code: Option<i32>,
    /// The beginning of what it printed.
    pub output: String,
}

impl Program<'_> {
    /// Runs it to its end. Dropped before, it is killed, and with it every process of its group.
    pub async fn run(&self) -> io::Result<Ended> {
        let (path, arguments) = self.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(path);
        command.args(arguments).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        if self.privileges == Privileges::None {
            // SAFETY: between fork and exec only `capset` is called, a bare system call, which allocates nothing and takes
            // no lock.
            unsafe { command.pre_exec(give_up_capabilities) };
        }
        let mut child = command.spawn()?;
        let group = Group(child.id());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut output = Vec::new();
        let mut errors = Vec::new();
        let status = {
            let print = async { tokio::join!(keep(stdout, &mut output), keep(stderr, &mut errors)) };
            tokio::pin!(print);
            let mut is_quiet = false;
            let status = loop {
                tokio::select! {
                    status = child.wait() => break status?,
                    _ = &mut print, if !is_quiet => is_quiet = true,
                }
            };
            // What it printed last may not have been read yet; but one that it left in the background may hold its output
            // for ever.
            if !is_quiet {
                let _ = tokio::time::timeout(LAST_WORDS, print).await;
            }
            status
        };
        group.done();
        output.extend(errors);
        output.truncate(MAX_OUTPUT);
        Ok(Ended { code: ExitStatus::code(&status), output: String::from_utf8_lossy(&output).into_owned() })
    }
}

async fn keep(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 1024];
    while let Ok(size @ 1..) = from.read(&mut buffer).await {
        let room = MAX_OUTPUT.saturating_sub(into.len());
        into.extend_from_slice(&buffer[..size.min(room)]);
    }
}

/// A process group that is killed unless its program has ended by itself.
struct Group(Option<u32>);

impl Group {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.and_then(|id| i32::try_from(id).ok()).filter(|id| *id > 1) {
            // SAFETY: kill(2) takes no pointers. The leader has not been waited for, so the group is still its.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
    }
}

/// capset(2) with nothing in any set. With no_new_privs, which the gateway has, the program that is executed next cannot get
/// more, even as root (Linux security/commoncap.c, `cap_bprm_creds_from_file`).
fn give_up_capabilities() -> io::Result<()> {
    let header = [CAPABILITY_VERSION, 0];
    let sets = [0_u32; 6];
    // SAFETY: the header is a version and a process id (0: this one), and version 3 reads two times three words.
    match unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(line: &str) -> Vec<String> {
        ["/bin/sh", "-c", line].map(str::to_owned).to_vec()
    }

    async fn run(line: &str, environment: &[(&'static str, String)], privileges: Privileges) -> Ended {
        Program { command: &shell(line), environment, privileges }.run().await.unwrap()
    }

    #[tokio::test]
    async fn its_code_its_output_and_its_environment() {
        let environment = [("GATUN_X", "a b".to_owned())];
        let line = "echo \"$GATUN_X $HOME\"; cat; echo oops >&2; exit 7";
        let ended = run(line, &environment, Privileges::Ours).await;
        assert_eq!(ended, Ended { code: Some(7), output: "a b \noops\n".to_owned() });
        assert_eq!(run("kill -9 $$", &[], Privileges::Ours).await.code, None);
        let missing = Program { command: &["/nonexistent".to_owned()], environment: &[], privileges: Privileges::None };
        assert_eq!(missing.run().await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn much_output_is_cut_and_does_not_stop_it() {
        let ended = run("head -c 1000000 /dev/zero; exit 3", &[], Privileges::Ours).await;
        assert_eq!((ended.code, ended.output.len()), (Some(3), MAX_OUTPUT));
    }

    #[tokio::test]
    async fn what_it_leaves_behind_is_not_waited_for() {
        let began = Instant::now();
        assert_eq!(run("sleep 5 & exit 0", &[], Privileges::Ours).await.code, Some(0));
        assert!(began.elapsed() < Duration::from_secs(4));
    }

    #[tokio::test]
    async fn it_has_no_capabilities() {
        let sets = "grep -h '^Cap[PE]' /proc/self/status";
        // As in the gateway; on this thread alone, which the test ends with.
        crate::io::privilege::forbid_new_privileges().unwrap();
        let ended = run(sets, &[], Privileges::None).await;
        assert_eq!(ended.output, "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n");
    }

    #[tokio::test]
    async fn dropped_it_is_killed_with_all_it_started() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("alive");
        let line = format!("(while :; do echo >> {}; sleep 0.01; done) & wait", path.display());
        let (command, patience) = (shell(&line), Duration::from_millis(300));
        let program = Program { command: &command, environment: &[], privileges: Privileges::None };
        assert!(tokio::time::timeout(patience, program.run()).await.is_err());
        let size = || std::fs::metadata(&path).map_or(0, |found| found.len());
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = size();
        assert!(before > 0, "it ran");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(size(), before, "it still runs");
    }
}
