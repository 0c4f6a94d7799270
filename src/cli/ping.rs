//! `gatun ping`: is a gateway there, and which?

use anyhow::Result;

use super::Context;
use crate::control::api::{self, Request};

/// Ask the running gateway for its version
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let pong: api::Pong = context.connect()?.call(&Request::Ping {})?;
    if args.json {
        context.output.json(&pong)?;
    } else {
        context.output.line(&format!("gatun {}, process {}", pong.version, pong.pid))?;
    }
    Ok(())
}
