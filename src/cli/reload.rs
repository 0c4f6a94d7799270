//! `gatun reload`, `gatun diff` and `gatun save`: the file, and what the running gateway does.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Context;
use super::output::complain;
use crate::control::api::{self, Request};

/// Make the running gateway read its configuration again; no flow is lost, and a bad file changes nothing
#[derive(Debug, clap::Args)]
pub struct ReloadArgs {
    /// Another file than the one it has loaded last, from now on
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Show what a reload would change
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// The file to compare with what runs; by default the one that it has loaded last
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn reload(args: &ReloadArgs, context: &mut Context) -> Result<()> {
    let request = Request::Reload { config: absolute(args.config.as_deref())? };
    show(&request, args.json, context)
}

pub(super) fn diff(args: &DiffArgs, context: &mut Context) -> Result<()> {
    let request = Request::Diff { config: absolute(args.config.as_deref())? };
    show(&request, args.json, context)
}

/// Asks for a change, and shows what it is.
pub(super) fn show(request: &Request, json: bool, context: &mut Context) -> Result<()> {
    let difference: api::Difference = context.connect()?.call(request)?;
    let output = &mut context.output;
    if json {
        return Ok(output.json(&difference)?);
    }
    for line in &difference.changes {
        output.line(line)?;
    }
    match &difference.saved {
        Some(file) => output.line(&format!("saved to {file}"))?,
        None if difference.changes.is_empty() => output.line("nothing changes")?,
        None => {}
    }
    for note in &difference.notes {
        complain(&format!("gatun: {note}"));
    }
    Ok(())
}

/// Write what the running gateway does into its configuration file
#[derive(Debug, clap::Args)]
pub struct SaveArgs {
    /// Also over what somebody has changed in the file since it was loaded
    #[arg(long)]
    force: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn save(args: &SaveArgs, context: &mut Context) -> Result<()> {
    show(&Request::Save { force: args.force }, args.json, context)
}

/// The daemon has another working directory.
fn absolute(path: Option<&Path>) -> Result<Option<PathBuf>> {
    path.map(|path| std::path::absolute(path).with_context(|| path.display().to_string())).transpose()
}
