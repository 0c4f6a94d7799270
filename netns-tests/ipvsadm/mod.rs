//! What was written for ipvsadm and IPVS, with gatun in their place: scripts, the steps of the kernel's own test, a daemon.

mod autostart;
mod ldirectord;
mod scripts;
mod selftest;

use std::os::unix::fs::symlink;

use anyhow::{Context, Result};

use crate::gateway;
use crate::lab::{Lab, PATIENCE};
use crate::process::{self, Finished};

/// A node on which gatun is called `ipvsadm`.
pub struct Node<'a> {
    lab: &'a Lab,
    name: &'static str,
    /// Seconds without work until a gateway that was started on demand stops.
    idle: u32,
}

impl<'a> Node<'a> {
    pub fn new(lab: &'a Lab, name: &'static str) -> Result<Node<'a>> {
        let directory = lab.path("bin");
        if !directory.exists() {
            std::fs::create_dir(&directory)?;
            for called in ["ipvsadm", "ipvsadm-save", "ipvsadm-restore"] {
                symlink(gateway::binary(), directory.join(called))?;
            }
        }
        Ok(Node { lab, name, idle: 30 })
    }

    pub fn idle(mut self, seconds: u32) -> Node<'a> {
        self.idle = seconds;
        self
    }

    /// Runs a script to its end.
    pub fn run(&self, script: &str) -> Result<Finished> {
        process::finish(self.command(&["sh", "-ec", script])?, PATIENCE)
    }

    /// The same; it has to succeed. Its standard output.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.run(script)?.success()
    }

    pub fn command(&self, words: &[&str]) -> Result<std::process::Command> {
        let mut command = self.lab.command(self.name, words)?;
        let path = std::env::var("PATH").context("PATH")?;
        command.env("PATH", format!("{}:{path}", self.lab.path("bin").display()));
        command.env("GATUN_STATE_DIR", gateway::state_dir(self.lab)).env("GATUN_IDLE", self.idle.to_string());
        command.env_remove("GATUN_CONTROL");
        Ok(command)
    }

    /// The gateways that were started on demand and have not ended: their directories.
    pub fn gateways(&self) -> usize {
        let Ok(entries) = std::fs::read_dir(gateway::state_dir(self.lab)) else { return 0 };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.starts_with("ns-")).count()
    }
}
