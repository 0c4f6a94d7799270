//! The command line: one file a command.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

mod check;
mod client;
mod completions;
mod conntrack;
mod edit;
mod explain;
pub mod format;
mod import;
mod ipvsadm;
mod man;
mod nat;
mod neighbour;
mod output;
mod persistence;
mod ping;
mod real_server;
mod reload;
mod replay;
mod run;
mod server;
mod service;
mod status;
mod top;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};

use client::Client;
use output::Output;

use crate::control::config::DEFAULT_PATH;

/// Where a gateway listens unless its configuration says otherwise.
pub const DEFAULT_CONTROL: &str = "/run/gatun/control.sock";

/// A layer-4 load balancer and NAT gateway in user space.
#[derive(Debug, Parser)]
#[command(name = "gatun", version, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    /// The control socket of the gateway [default: /run/gatun/control.sock]
    #[arg(long, global = true, env = "GATUN_CONTROL", value_name = "PATH", hide_env_values = true)]
    control: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Check(check::Args),
    Status(status::Args),
    Top(top::Args),
    #[command(subcommand)]
    Conntrack(conntrack::Command),
    #[command(subcommand)]
    Nat(nat::Command),
    #[command(subcommand)]
    Service(service::Command),
    #[command(subcommand)]
    Server(server::Command),
    #[command(subcommand)]
    Neighbour(neighbour::Command),
    #[command(subcommand)]
    Persistence(persistence::Command),
    Explain(explain::Args),
    Import(import::Args),
    Replay(replay::Args),
    Reload(reload::ReloadArgs),
    Diff(reload::DiffArgs),
    Save(reload::SaveArgs),
    Ping(ping::Args),
    Ipvsadm(ipvsadm::Args),
    RealServer(real_server::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// What every command may use.
struct Context {
    control: Option<PathBuf>,
    output: Output,
}

impl Context {
    fn connect(&self) -> Result<Client> {
        Client::connect(&self.socket())
    }

    fn socket(&self) -> PathBuf {
        self.control.clone().unwrap_or_else(ipvsadm::default_socket)
    }
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    if let Some(code) = ipvsadm::called(&words) {
        return code;
    }
    let parsed = command().get_matches();
    let Cli { control, command } = Cli::from_arg_matches(&parsed).unwrap_or_else(|error| error.exit());
    let mut context = Context { control, output: Output::stdout() };
    let done = run(command, &mut context).and_then(|code| {
        context.output.flush()?;
        Ok(code)
    });
    match done {
        Ok(code) => code,
        // Who reads has seen enough (`gatun conntrack list | head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("gatun: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Commands that speak to no gateway.
const ALONE: [&str; 5] = ["check", "import", "replay", "completions", "man"];

/// The whole command line, for parsing and for what describes it.
fn command() -> clap::Command {
    // Everybody takes --control, so that a script may pass it anywhere; where it has no effect the help is silent.
    ALONE.iter().fold(Cli::command(), |cli, name| {
        cli.mut_subcommand(name, |command| {
            command.arg(Arg::new("control").long("control").value_name("PATH").global(true).hide(true))
        })
    })
}

/// Who has not written a configuration yet learns where to begin.
fn exists_or_hint(config: &Path) -> Result<()> {
    if config == Path::new(DEFAULT_PATH) && matches!(config.try_exists(), Ok(false)) {
        bail!(
            "there is no {DEFAULT_PATH}: write one (config/minimal.toml and config/full.toml among gatun's sources are \
             examples), or name another file with -c FILE"
        );
    }
    Ok(())
}

fn run(command: Command, context: &mut Context) -> Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(args, context),
        Command::Check(args) => return check::run(&args, context),
        Command::Import(args) => return import::run(&args, context),
        Command::Ipvsadm(args) => return Ok(ipvsadm::run(&args, context.control.take())),
        Command::Status(args) => status::run(&args, context),
        Command::Top(args) => top::run(&args, context),
        Command::Conntrack(command) => conntrack::run(command, context),
        Command::Nat(command) => nat::run(command, context),
        Command::Service(command) => service::run(command, context),
        Command::Server(command) => server::run(command, context),
        Command::Neighbour(command) => neighbour::run(&command, context),
        Command::Persistence(command) => persistence::run(&command, context),
        Command::Explain(args) => explain::run(&args, context),
        Command::Replay(args) => replay::run(&args, context),
        Command::Reload(args) => reload::reload(&args, context),
        Command::Diff(args) => reload::diff(&args, context),
        Command::Save(args) => reload::save(&args, context),
        Command::Ping(args) => ping::run(&args, context),
        Command::RealServer(args) => real_server::run(args, context),
        Command::Completions(args) => completions::run(&args, context),
        Command::Man(args) => man::run(&args, context),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(broken)
}
