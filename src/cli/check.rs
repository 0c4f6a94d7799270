//! `gatun check`: is a configuration file right, and will it work on this host?

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::{Context, exists_or_hint, output};
use crate::control::config::host::Host;
use crate::control::config::{AnyConfig, DEFAULT_PATH};

/// Check a configuration file, without a running gateway and without changing anything
///
/// Prints every mistake with its line and column and exits with 1. Warnings are for what this host lacks; they do not change the exit code.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file to check
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<ExitCode> {
    exists_or_hint(&args.config)?;
    let file = args.config.display();
    let config = match AnyConfig::load(&args.config) {
        Ok(AnyConfig::Gateway(config)) => config,
        Ok(AnyConfig::RealServer(config)) => {
            for warning in Host::default().real_server_warnings(&config) {
                output::complain(&format!("{file}: warning: {warning}"));
            }
            let (vips, gateways) = (counted(config.vips.len(), "VIP"), counted(config.gateways.len(), "gateway"));
            context.output.line(&format!("{file}: ok: a real server, {vips}, {gateways}"))?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(errors) => {
            output::complain(&errors.to_string());
            return Ok(ExitCode::FAILURE);
        }
    };
    for warning in Host::default().warnings(&config) {
        output::complain(&format!("{file}: warning: {warning}"));
    }
    if let Some(obstacle) = Host::default().obstacle(&config) {
        output::complain(&format!("{file}: {obstacle}; gatun would not start"));
        return Ok(ExitCode::FAILURE);
    }
    let servers: usize = config.services.iter().map(|service| service.servers.len()).sum();
    let mut counts = vec![counted(config.services.len(), "service"), counted(servers, "server")];
    let others = [(config.masquerades.len(), "masquerade"), (config.forwards.len(), "forward")];
    counts.extend(others.iter().filter(|(count, _)| *count > 0).map(|(count, noun)| counted(*count, noun)));
    context.output.line(&format!("{file}: ok: {}", counts.join(", ")))?;
    Ok(ExitCode::SUCCESS)
}

fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
