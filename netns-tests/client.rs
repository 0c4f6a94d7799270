//! What the client does: requests by curl, counted by the server that answered.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::{Lab, PATIENCE};
use crate::process::{self, Finished};

/// The names that answered `count` requests to a URL's root, in order. Each request has a connection of its own, one after
/// the other; each has to succeed.
pub fn answers(lab: &Lab, base: &str, count: usize) -> Result<Vec<String>> {
    answers_from(lab, None, base, count)
}

/// The same, from one of the client's addresses.
pub fn answers_from(lab: &Lab, source: Option<&str>, base: &str, count: usize) -> Result<Vec<String>> {
    let url = format!("http://{base}/?[1-{count}]");
    let mut words = vec!["curl", "-sS", "--fail-early", "--fail", "--max-time", "5", "-H", "Connection: close"];
    words.extend(source.iter().flat_map(|address| ["--interface", *address]));
    words.push(&url);
    let names: Vec<String> = lab.run("client", &words)?.success()?.lines().map(str::to_string).collect();
    ensure!(names.len() == count, "{count} requests to {base}, {} answers", names.len());
    Ok(names)
}

/// How often each name occurs.
pub fn spread(names: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.as_str()).or_default() += 1;
    }
    counts
}

/// One request; curl's own exit codes tell how it failed (7: refused, 28: no answer in time).
pub fn curl(lab: &Lab, url: &str) -> Result<Finished> {
    lab.run("client", &["curl", "-sSg", "--fail", "--max-time", "5", "-H", "Connection: close", url])
}

/// SHA-256 of a file, in hex.
pub fn sha256(lab: &Lab, file: &str) -> Result<String> {
    let mut command = lab.command("client", &["sha256sum"])?;
    command.arg(lab.path(file));
    let line = process::finish(command, PATIENCE)?.success()?;
    Ok(line.split(' ').next().unwrap_or_default().to_string())
}

/// A file of random bytes in the lab's directory.
pub fn random_file(lab: &Lab, name: &str, megabytes: u32) -> Result<()> {
    let path = lab.path(name);
    let path = path.to_str().context("a path in UTF-8")?;
    lab.sh("client", &format!("head -c {megabytes}M /dev/urandom >{path}")).map(drop)
}

/// Downloads `/files/NAME` from a base URL into a file; it has to succeed within a minute.
pub fn download(lab: &Lab, base: &str, name: &str, into: &str) -> Result<()> {
    let into = lab.path(into);
    let into = into.to_str().context("a path in UTF-8")?;
    let url = format!("http://{base}/files/{name}");
    let curl = lab.command("client", &["curl", "-sSgf", "--max-time", "60", "-o", into, &url])?;
    process::finish(curl, Duration::from_secs(65))?.success().map(drop)
}

/// Uploads a file as `/files/AS`.
pub fn upload(lab: &Lab, base: &str, name: &str, as_name: &str) -> Result<()> {
    let file = lab.path(name);
    let file = file.to_str().context("a path in UTF-8")?;
    let url = format!("http://{base}/files/{as_name}");
    let curl = lab.command("client", &["curl", "-sSgf", "--max-time", "60", "-T", file, &url])?;
    process::finish(curl, Duration::from_secs(65))?.success().map(drop)
}
