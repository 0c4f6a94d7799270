//! `gatun real-server`: the decapsulating side on a real server.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};

use super::Context;
use super::client::Client;
use super::format::number::duration;
use super::format::table::{Align, Table};
use super::run::{LogFormat, start_log};
use crate::control::api::Request;
use crate::control::config::RealServerConfig;
use crate::control::real_server::{self, Options, Setup, Status};
use crate::io::host::STATE_DIRECTORY;

/// Take packets for VIPs out of the gateways' tunnels, on a real server, until SIGTERM; SIGHUP reloads the configuration
///
/// The host answers clients itself, under the VIP. What to take is said by a file, or by --vip, --gateway and --tunnel.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["vip", "status"])]
    config: Option<PathBuf>,
    /// An address that this server answers under
    #[arg(long, value_name = "ADDR", num_args = 1.., value_delimiter = ',', conflicts_with = "config", requires = "gateway")]
    vip: Vec<String>,
    /// Who may send tunnelled packets: the source of their outer header
    #[arg(long, value_name = "ADDR", num_args = 1.., value_delimiter = ',', conflicts_with = "config", requires = "vip")]
    gateway: Vec<String>,
    /// Which tunnels: ipip, gue, gue:PORT [default: ipip]
    #[arg(long, value_name = "TUNNEL", num_args = 1.., value_delimiter = ',', conflicts_with = "config")]
    tunnel: Vec<String>,
    /// Name of the device that holds the VIPs [default: gatun-rs0]
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    device: Option<String>,
    /// What fits through the tunnel, in bytes [default: the way to the gateways less the largest outer headers]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(576..), conflicts_with = "config")]
    mtu: Option<u16>,
    /// Show what a running real server has taken and dropped, and do nothing
    #[arg(long, conflicts_with_all = ["vip", "gateway", "tunnel", "device", "mtu"])]
    status: bool,
    /// With --status: as JSON
    #[arg(long, requires = "status")]
    json: bool,
    /// Where to keep the record of what was changed on this host, by which a start cleans up after one that was killed
    #[arg(long, value_name = "DIRECTORY", env = "GATUN_STATE_DIR", default_value = STATE_DIRECTORY, hide_env_values = true)]
    state_dir: PathBuf,
    /// What to log: error, warn, info, debug or trace, also by module [default: RUST_LOG, else info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
}

pub(super) fn run(args: Args, context: &mut Context) -> Result<()> {
    if args.status {
        return show(&args, context);
    }
    let setup = match args.config {
        Some(path) => Setup::File(path),
        None => {
            let words = (&args.vip, &args.gateway, &args.tunnel);
            let config = RealServerConfig::from_words(words.0, words.1, words.2, args.device.as_deref(), args.mtu);
            Setup::Given(config.map_err(|wrong| anyhow!(wrong))?)
        }
    };
    start_log(args.log.as_deref(), args.log_format)?;
    real_server::run(&Options { setup, control: context.control.clone(), state_dir: args.state_dir })
}

/// Asks the socket of `--control`, of the file, or the usual one.
fn show(args: &Args, context: &mut Context) -> Result<()> {
    let path = match (&context.control, &args.config) {
        (Some(path), _) => path.clone(),
        (None, Some(file)) => RealServerConfig::load(file)?.control,
        (None, None) => RealServerConfig::default().control,
    };
    if !path.exists() {
        bail!(
            "no real server answers on {}: start one with `gatun real-server`, or name its socket with --control",
            path.display()
        );
    }
    let status: Status = Client::connect(&path)?.call(&Request::Status {})?;
    let output = &mut context.output;
    if args.json {
        return Ok(output.json(&status)?);
    }
    let mut lines = screen(&status).into_iter();
    if let Some(heading) = lines.next() {
        output.heading(&heading)?;
    }
    for line in lines {
        output.line(&line)?;
    }
    Ok(())
}

fn screen(status: &Status) -> Vec<String> {
    let up = duration(std::time::Duration::from_secs(status.uptime));
    let mut lines = vec![
        format!("gatun {} real server on {}, process {}, up {up}", status.version, status.device, status.pid),
        format!("config    {}", status.config.as_deref().unwrap_or("the command line")),
        format!("vips      {}", status.vips.join(" ")),
        format!("gateways  {}", status.gateways.join(" ")),
        format!("tunnels   {}, {} bytes", status.tunnels.join(" "), status.tunnel_mtu),
        format!("ipip      {} packets, {} bytes", status.ipip.packets, status.ipip.bytes),
        format!("gue       {} packets, {} bytes", status.gue.packets, status.gue.bytes),
        format!("written   {} packets, {} errors", status.written, status.write_errors),
        format!("overruns  {}", status.overruns),
    ];
    if !status.drops.is_empty() {
        let mut table = Table::new(&[("  PACKETS", Align::Right), ("REASON", Align::Left), ("MEANING", Align::Left)]);
        for drops in &status.drops {
            table.row([drops.packets.to_string(), drops.reason.clone(), drops.meaning.clone()]);
        }
        lines.extend(["".to_owned(), "dropped".to_owned()]);
        lines.extend(table.lines());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{Drops, Volume};

    #[test]
    fn the_screen() {
        let status = Status {
            version: "1.2.3".to_owned(),
            pid: 42,
            uptime: 187,
            device: "gatun-rs0".to_owned(),
            config: None,
            vips: vec!["203.0.113.10".to_owned(), "2001:db8:f::10".to_owned()],
            gateways: vec!["10.20.0.1".to_owned()],
            tunnels: vec!["ipip".to_owned(), "gue".to_owned()],
            tunnel_mtu: 1468,
            ipip: Volume { packets: 4711, bytes: 123_456 },
            gue: Volume::default(),
            written: 100,
            write_errors: 0,
            overruns: 3,
            drops: vec![Drops {
                reason: "unknown_gateway".to_owned(),
                packets: 9,
                meaning: "From somebody else.".to_owned(),
                shortage: false,
            }],
        };
        let expected = "\
gatun 1.2.3 real server on gatun-rs0, process 42, up 3m07s
config    the command line
vips      203.0.113.10 2001:db8:f::10
gateways  10.20.0.1
tunnels   ipip gue, 1468 bytes
ipip      4711 packets, 123456 bytes
gue       0 packets, 0 bytes
written   100 packets, 0 errors
overruns  3

dropped
  PACKETS  REASON           MEANING
        9  unknown_gateway  From somebody else.";
        assert_eq!(screen(&status).join("\n"), expected);
    }
}
