//! `gatun completions`: for a shell to source.

use anyhow::Result;
use clap_complete::Shell;

use super::Context;

/// Print a shell's completions
#[derive(Debug, clap::Args)]
pub struct Args {
    shell: Shell,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    // Collected first: the generator panics when it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "gatun", &mut script);
    std::io::Write::write_all(context.output.raw(), &script)?;
    Ok(())
}
