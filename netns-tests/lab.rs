//! The lab of one scenario: made by `scripts/lab`, gone with the scenario.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::gateway::{self, Gateway};
use crate::process::{self, Finished, Running};
use crate::report;

/// Names of the labs of the test process with this id begin so.
fn prefix_of(pid: u32) -> String {
    format!("gatun-t{pid}-")
}

/// How long a program may take that is expected to end by itself.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Lab {
    prefix: String,
    /// Files of this scenario: configurations, logs, web pages.
    pub directory: PathBuf,
    pub processes: RefCell<Vec<Running>>,
    /// Held here, too, so that a failed scenario's report can still ask the gateways.
    pub gateways: RefCell<Vec<Rc<Gateway>>>,
}

/// Runs one scenario in a lab of its own, of topology `routed`. `needs` are the programs that it uses besides gatun.
///
/// Skips, saying why, where the host cannot run it; see [`report::skip`].
pub fn scenario(needs: &[&str], body: impl FnOnce(&Lab) -> Result<()>) {
    scenario_on("routed", needs, body);
}

/// The same in a lab of another topology (`scripts/lab --help`).
pub fn scenario_on(topology: &str, needs: &[&str], body: impl FnOnce(&Lab) -> Result<()>) {
    let name = scenario_name();
    if let Some(reason) = report::obstacle(needs) {
        return report::skip(&name, &reason);
    }
    take_down_stale_labs();
    let lab = Lab::up(topology).expect("the lab comes up");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&lab)));
    let failure = match outcome {
        Ok(Ok(())) => return report::forget(&name),
        Ok(Err(error)) => format!("{error:#}{}", places(&error)),
        // The panic's own message has been printed already.
        Err(_) => "a panic".to_string(),
    };
    let kept = report::write(&lab, &name);
    drop(lab);
    panic!("{name}: {failure}\n{kept}");
}

/// Where in the scenarios an error comes from, if backtraces are on; the frames around them say nothing.
fn places(error: &anyhow::Error) -> String {
    let backtrace = error.backtrace().to_string();
    let ours = backtrace.lines().filter(|line| line.contains("/netns-tests/") && !line.contains("lab.rs"));
    ours.map(|line| format!("\n{line}")).collect()
}

/// The test's name: libtest gives it to the thread.
fn scenario_name() -> String {
    std::thread::current().name().unwrap_or("scenario").to_string()
}

impl Lab {
    fn up(topology: &str) -> Result<Lab> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let prefix = format!("{}{}-", prefix_of(pid), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(prefix.trim_end_matches('-'));
        std::fs::create_dir_all(&directory)?;
        let lab = Lab { prefix, directory, processes: RefCell::default(), gateways: RefCell::default() };
        script(&lab.prefix, &["up", topology])?;
        Ok(lab)
    }

    /// The network namespace of a node.
    pub fn netns(&self, node: &str) -> String {
        format!("{}{node}", self.prefix)
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    pub fn command(&self, node: &str, words: &[&str]) -> Result<Command> {
        let (program, arguments) = words.split_first().context("which command?")?;
        let mut command = process::command_in(&self.netns(node), program)?;
        command.args(arguments);
        Ok(command)
    }

    /// Sets a server up for methods: `scripts/lab serve NODE SETUP…`.
    pub fn serve(&self, node: &str, setup: &[&str]) -> Result<()> {
        self.script(&[&["serve", node], setup].concat())
    }

    /// The same for several servers at a time.
    pub fn serve_all(&self, nodes: &[&str], setup: &[&str]) -> Result<()> {
        let start = |node: &&str| Running::piped(command(&self.prefix, &[&["serve", *node], setup].concat()));
        let running: Vec<Running> = nodes.iter().map(start).collect::<Result<_>>()?;
        running.into_iter().try_for_each(|script| script.finish(PATIENCE)?.success().map(drop))
    }

    /// `scripts/lab WORDS…`, with this lab.
    pub fn script(&self, words: &[&str]) -> Result<()> {
        script(&self.prefix, words)
    }

    /// Runs a program on a node to its end.
    pub fn run(&self, node: &str, words: &[&str]) -> Result<Finished> {
        process::finish(self.command(node, words)?, PATIENCE)
    }

    /// Runs a program on a node; it has to succeed. Its standard output.
    pub fn sh(&self, node: &str, line: &str) -> Result<String> {
        self.run(node, &["sh", "-ec", line])?.success()
    }

    /// Starts a program on a node whose output is of interest when it has ended.
    pub fn start(&self, node: &str, words: &[&str]) -> Result<Running> {
        Running::piped(self.command(node, words)?)
    }

    /// Starts a program that goes on until the lab goes. Its log is `NAME.log`.
    pub fn keep(&self, node: &str, name: &str, words: &[&str]) -> Result<()> {
        let running = Running::logged(self.command(node, words)?, &self.path(&format!("{name}.log")))?;
        self.processes.borrow_mut().push(running);
        Ok(())
    }

    /// Ends a program started with [`Lab::keep`] whose command line has `word` in it.
    pub fn end(&self, word: &str) -> Result<()> {
        let mut processes = self.processes.borrow_mut();
        let before = processes.len();
        processes.retain(|process| !process.what.contains(word));
        ensure!(processes.len() == before - 1, "{} processes match \"{word}\"", before - processes.len());
        Ok(())
    }

    /// Kills all programs started with [`Lab::keep`] whose command line has `word` in it.
    pub fn end_all(&self, word: &str) -> Result<()> {
        let mut processes = self.processes.borrow_mut();
        let before = processes.len();
        processes.retain(|process| !process.what.contains(word));
        ensure!(processes.len() < before, "no process matches \"{word}\"");
        Ok(())
    }

    /// Runs `body` on a thread inside a node; see [`process::inside`].
    pub fn inside<T: Send>(&self, node: &str, body: impl FnOnce() -> T + Send) -> Result<T> {
        process::inside(&self.netns(node), body)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.gateways.borrow_mut().clear();
        self.processes.borrow_mut().clear();
        if let Err(error) = script(&self.prefix, &["down"]) {
            eprintln!("{error:#}");
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn script(prefix: &str, words: &[&str]) -> Result<()> {
    process::finish(command(prefix, words), PATIENCE)?.success().map(drop)
}

fn command(prefix: &str, words: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lab");
    let mut lab = Command::new(script);
    lab.args(words).env("GATUN_LAB", prefix).env("GATUN", gateway::binary()).stdin(Stdio::null());
    lab
}

/// Takes down what test processes left that were killed.
fn take_down_stale_labs() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    let mut stale: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            // gatun-t<pid>-<n>-<node>
            let (pid, rest) = name.strip_prefix("gatun-t")?.split_once('-')?;
            let (n, _) = rest.split_once('-')?;
            let pid: u32 = pid.parse().ok()?;
            let dead = !Path::new(&format!("/proc/{pid}")).exists();
            dead.then(|| format!("{}{n}-", prefix_of(pid)))
        })
        .collect();
    stale.sort();
    stale.dedup();
    for prefix in stale {
        // Another scenario may be doing the same just now; then one of both fails, which does not matter.
        let _ = script(&prefix, &["down"]);
        let _ = std::fs::remove_dir_all(std::env::temp_dir().join(prefix.trim_end_matches('-')));
    }
}
