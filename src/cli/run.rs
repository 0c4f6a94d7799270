//! `gatun run`: the daemon.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use super::{Context, exists_or_hint};
use crate::control::config::DEFAULT_PATH;
use crate::control::daemon::{self, OnDemand, Options};
use crate::io::host::STATE_DIRECTORY;

/// Run the gateway until SIGTERM; SIGHUP reloads the configuration
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Leave the host's routes, rules and sysctls alone
    #[arg(long)]
    no_routes: bool,
    /// Print the commands that set the host up, and do nothing
    #[arg(long, conflicts_with = "no_routes")]
    print_routes: bool,
    /// Where to keep the record of what was changed on this host, by which a start cleans up after a gateway that was killed
    #[arg(long, value_name = "DIRECTORY", env = "GATUN_STATE_DIR", default_value = STATE_DIRECTORY, hide_env_values = true)]
    state_dir: PathBuf,
    /// Started by `gatun ipvsadm`: stop when nobody needs it any more, and remove this directory then
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    on_demand: Option<PathBuf>,
    /// Seconds without service and flow until a gateway that was started on demand stops
    #[arg(long, value_name = "SECONDS", env = "GATUN_IDLE", default_value = "30", hide = true)]
    idle: u64,
    /// What to log: error, warn, info, debug or trace, also by module (`info,gatun::io=debug`) [default: RUST_LOG, else
    /// info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For a human
    Text,
    /// One JSON object a line
    Json,
}

pub(super) fn run(args: Args, context: &mut Context) -> Result<()> {
    exists_or_hint(&args.config)?;
    if args.print_routes {
        context.output.line(daemon::print_routes(&args.config)?.trim_end())?;
        return Ok(());
    }
    start_log(args.log.as_deref(), args.log_format)?;
    daemon::run(&Options {
        config: args.config,
        control: context.control.clone(),
        no_routes: args.no_routes,
        state_dir: args.state_dir,
        on_demand: args.on_demand.map(|directory| OnDemand { directory, idle: Duration::from_secs(args.idle) }),
    })
}

pub(super) fn start_log(filter: Option<&str>, format: LogFormat) -> Result<()> {
    let from_environment = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let directives = filter.or(from_environment.as_deref()).filter(|filter| !filter.trim().is_empty());
    let directives = directives.unwrap_or("info");
    let filter = EnvFilter::try_new(directives).map_err(|error| anyhow!("{directives:?} is no log filter: {error}"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => {
            let terminal = io::stderr().is_terminal();
            // systemd stamps every line itself.
            let log = log.with_ansi(terminal).with_target(false);
            if std::env::var_os("JOURNAL_STREAM").is_some() { log.without_time().init() } else { log.init() }
        }
    }
    Ok(())
}
