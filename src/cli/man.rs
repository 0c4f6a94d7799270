//! `gatun man`: manual pages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap_mangen::Man;

use super::Context;

/// Print the manual page of a command, or write all of them to a directory
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As `conntrack list`; gatun itself by default
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write every page here, as gatun.1, gatun-status.1 and so on
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let mut root = super::command();
    root.build();
    if let Some(directory) = &args.dir {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        return write_all(&root, "gatun", directory);
    }
    let mut command = &root;
    for name in &args.command {
        command = command.find_subcommand(name).with_context(|| format!("there is no command {name:?}"))?;
    }
    let title = [&["gatun".to_owned()], args.command.as_slice()].concat().join("-");
    Ok(page(command, &title).render(context.output.raw())?)
}

fn write_all(command: &clap::Command, title: &str, directory: &Path) -> Result<()> {
    let path = directory.join(format!("{title}.1"));
    let mut text = Vec::new();
    page(command, title).render(&mut text)?;
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    for inner in command.get_subcommands() {
        write_all(inner, &format!("{title}-{}", inner.get_name()), directory)?;
    }
    Ok(())
}

fn page(command: &clap::Command, title: &str) -> Man {
    Man::new(command.clone()).title(title.to_uppercase()).section("1")
}
