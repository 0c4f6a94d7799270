//! Programs inside namespaces: started, waited for within a time limit, and never left behind.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// A command that will run in the network namespace called `netns`, and die with the thread that spawns it.
pub fn command_in(netns: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
    let namespace = open_netns(netns)?;
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    // SAFETY: between fork and exec only setns and prctl run, both plain system calls; the descriptor moved into the
    // closure is still open there.
    unsafe {
        command.pre_exec(move || {
            if libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) != 0
                || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Ok(command)
}

/// Runs `body` on a thread inside the namespace. A socket made there stays in it wherever it is used afterwards.
pub fn inside<T: Send>(netns: &str, body: impl FnOnce() -> T + Send) -> Result<T> {
    let namespace = open_netns(netns)?;
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                // SAFETY: a system call on an open descriptor; it concerns this thread alone.
                let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                ensure!(entered == 0, "setns: {}", std::io::Error::last_os_error());
                Ok(body())
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn open_netns(netns: &str) -> Result<File> {
    File::open(Path::new("/run/netns").join(netns)).with_context(|| format!("namespace {netns}"))
}

/// What a program that ended had to say.
pub struct Finished {
    pub what: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Its standard output, provided it succeeded.
    pub fn success(self) -> Result<String> {
        ensure!(self.status.success(), "{self}");
        Ok(self.stdout)
    }

    /// Fails unless it ended with this exit code.
    pub fn exits(self, code: i32) -> Result<Finished> {
        ensure!(self.status.code() == Some(code), "exit code {code} was expected: {self}");
        Ok(self)
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with {}\n{}{}", self.what, self.status, self.stdout, self.stderr)
    }
}

/// Runs a command to its end, which has to come within `limit`.
pub fn finish(mut command: Command, limit: Duration) -> Result<Finished> {
    let what = describe(&command);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| what.clone())?;
    Running { what, child }.finish(limit)
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A program that goes on in the background. Dropping it kills it.
pub struct Running {
    pub what: String,
    child: Child,
}

impl Running {
    /// Starts a program whose output is read when it has ended.
    pub fn piped(mut command: Command) -> Result<Running> {
        let what = describe(&command);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| what.clone())?;
        Ok(Running { what, child })
    }

    /// Starts a program that writes its output to `log`.
    pub fn logged(mut command: Command, log: &Path) -> Result<Running> {
        let what = describe(&command);
        let file = File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let child = command.stdout(file.try_clone()?).stderr(file).spawn().with_context(|| what.clone())?;
        Ok(Running { what, child })
    }

    /// Waits for its end.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        let read = |stream: Option<Box<dyn Read + Send>>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.map(|mut stream| stream.read_to_end(&mut bytes));
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let stdout = read(self.child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>));
        let stderr = read(self.child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>));
        let status = self.wait(limit)?;
        let join = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
        Ok(Finished { what: self.what.clone(), status, stdout: join(stdout), stderr: join(stderr) })
    }

    fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                bail!("`{}` did not end within {limit:?}", self.what);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: a system call; the child has not been waited for, so the pid is its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// SIGTERM; it has to end by itself within `limit`, with exit code 0 or by the signal.
    pub fn stop(&mut self, limit: Duration) -> Result<()> {
        self.signal(libc::SIGTERM);
        let status = self.wait(limit)?;
        ensure!(
            status.success() || status.signal() == Some(libc::SIGTERM),
            "`{}` ended with {status} at SIGTERM",
            self.what
        );
        Ok(())
    }

    /// SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Polls until `condition` holds.
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition() {
        ensure!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
