//! `gatun import`: a keepalived.conf in gatun's terms.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use super::{Context, output};
use crate::control::config::Config;
use crate::control::import;

/// Turn the virtual servers of a keepalived.conf into services
///
/// Prints the configuration; what could not be carried over goes to standard error, each with its line, and stands as a comment in
/// the configuration too.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file of keepalived
    #[arg(value_name = "FILE", default_value = "/etc/keepalived/keepalived.conf")]
    file: PathBuf,
    /// Write the configuration here
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Exit with 1 if anything was not carried over
    #[arg(long)]
    strict: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<ExitCode> {
    let name = args.file.display().to_string();
    let text = fs::read(&args.file).with_context(|| name.clone())?;
    let made = import::keepalived(&name, &String::from_utf8_lossy(&text));
    match &args.output {
        Some(path) => fs::write(path, &made.text).with_context(|| path.display().to_string())?,
        None => context.output.line(made.text.trim_end())?,
    }
    for lost in &made.lost {
        output::complain(&format!("{name}:{}: not carried over: {}", lost.line, lost.what));
    }
    // What keepalived would take but gatun does not, such as two servers at one address.
    let shown = args.output.as_deref().unwrap_or(Path::new("the configuration"));
    let checked = Config::parse(shown, &made.text).and_then(|config| config.compiled().map(drop));
    if let Err(errors) = &checked {
        output::complain(&errors.to_string());
    }
    let (services, lost) = (made.services, made.lost.len());
    output::complain(&format!("{name}: {services} services; {lost} things not carried over"));
    Ok(if checked.is_err() || (args.strict && lost > 0) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
