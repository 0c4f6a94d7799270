//! The gatun under test: configured, started on `gw`, asked, reloaded, stopped.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::capture::Capture;
use crate::flow_line::FlowLine;
use crate::lab::{Lab, PATIENCE};
use crate::process::{self, Finished, Running, eventually};

/// A gateway to be started. Made with [`Setup::new`]; the rest says what differs from the ordinary.
pub struct Setup {
    device: String,
    /// The line of `[gateway]` that says where it is.
    place: String,
    /// Further lines of `[gateway]`.
    gateway: String,
    /// The lines of `[conntrack]`.
    conntrack: String,
    services: String,
    arguments: Vec<String>,
    capture: bool,
    metrics_port: u16,
}

impl Setup {
    /// With these `[[service]]` tables.
    pub fn new(services: impl Into<String>) -> Setup {
        Setup {
            device: "gatun0".to_string(),
            place: "uplink = [\"eth0\"]".to_string(),
            gateway: String::new(),
            conntrack: String::new(),
            services: services.into(),
            arguments: Vec::new(),
            capture: true,
            metrics_port: 9108,
        }
    }

    /// A second gateway in one namespace needs a device and a metrics port of its own.
    pub fn device(mut self, device: &str, metrics_port: u16) -> Setup {
        self.device = device.to_string();
        self.metrics_port = metrics_port;
        self
    }

    /// A host of its own on the segment of topology `bridged`.
    pub fn tap(mut self) -> Setup {
        self.place = "mode = \"tap\"\nbridge = \"lan\"\naddress = [\"10.20.0.2/24\", \"fd20::2/64\"]\n\
                      router = [\"10.20.0.254\", \"fd20::254\"]"
            .to_string();
        self
    }

    /// On topology `masquerade`, where the uplink is the bridge `wan`.
    pub fn wan(mut self) -> Setup {
        self.place = "uplink = [\"wan\"]".to_string();
        self
    }

    pub fn gateway(mut self, line: &str) -> Setup {
        writeln!(self.gateway, "{line}").expect("a String takes everything");
        self
    }

    pub fn conntrack(mut self, line: &str) -> Setup {
        writeln!(self.conntrack, "{line}").expect("a String takes everything");
        self
    }

    /// A further argument of `gatun run`.
    pub fn argument(mut self, argument: &str) -> Setup {
        self.arguments.push(argument.to_string());
        self
    }

    /// Takes no capture: where there are packets by the million.
    pub fn uncaptured(mut self) -> Setup {
        self.capture = false;
        self
    }

    /// Writes the configuration file; answers its path.
    pub fn write(&self, lab: &Lab) -> Result<PathBuf> {
        let path = lab.path(&format!("{}.toml", self.device));
        fs::write(&path, self.toml(lab, &self.services))?;
        Ok(path)
    }

    fn control(&self, lab: &Lab) -> PathBuf {
        lab.path(&format!("{}.sock", self.device))
    }

    fn toml(&self, lab: &Lab, services: &str) -> String {
        format!(
            "[gateway]\ndevice = \"{}\"\n{}\ncontrol = \"{}\"\nmetrics = \"127.0.0.1:{}\"\n{}\n\
             [conntrack]\n{}\n{services}",
            self.device,
            self.place,
            self.control(lab).display(),
            self.metrics_port,
            self.gateway,
            self.conntrack
        )
    }

    /// Starts it, and waits until it answers.
    pub fn start(self, lab: &Lab) -> Result<Rc<Gateway>> {
        let config = self.write(lab)?;
        let log = lab.path(&format!("{}.log", self.device));
        let file = lab.path(&format!("{}.pcap", self.device));
        let capture = if self.capture { Some(Capture::of_all(&lab.netns("gw"), &file)?) } else { None };
        let gateway = Rc::new(Gateway {
            netns: lab.netns("gw"),
            control: self.control(lab),
            running: RefCell::new(self.launch(lab, &config, &log)?),
            capture: RefCell::new(capture),
            config,
            log,
            setup: self,
        });
        lab.gateways.borrow_mut().push(gateway.clone());
        gateway.wait_until_ready()?;
        Ok(gateway)
    }

    fn launch(&self, lab: &Lab, config: &Path, log: &Path) -> Result<Running> {
        let mut command = process::command_in(&lab.netns("gw"), binary())?;
        command.arg("run").arg("-c").arg(config).args(&self.arguments).env("GATUN_STATE_DIR", state_dir(lab));
        Running::logged(command, log)
    }
}

/// The gatun to test; GATUN_BIN names another one than this build's, for instance a release build.
pub fn binary() -> PathBuf {
    std::env::var_os("GATUN_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_gatun")), PathBuf::from)
}

/// Where gateways keep their records: they are gone with the lab, whatever becomes of the gateways.
pub fn state_dir(lab: &Lab) -> PathBuf {
    lab.path("state")
}

/// A `gatun` command that needs no gateway and no privilege.
pub fn gatun(lab: &Lab, words: &[&str]) -> Result<Finished> {
    let mut command = process::command_in(&lab.netns("gw"), binary())?;
    command.args(words).env("GATUN_STATE_DIR", state_dir(lab));
    process::finish(command, PATIENCE)
}

pub struct Gateway {
    netns: String,
    control: PathBuf,
    running: RefCell<Running>,
    capture: RefCell<Option<Capture>>,
    pub config: PathBuf,
    pub log: PathBuf,
    setup: Setup,
}

impl Gateway {
    fn wait_until_ready(&self) -> Result<()> {
        let ready = || self.gatun(&["status"]).is_ok_and(|status| status.status.success());
        eventually("gatun is ready or has ended", PATIENCE, || ready() || !self.running.borrow_mut().alive())?;
        ensure!(self.running.borrow_mut().alive(), "gatun did not start: {}", self.log_text());
        Ok(())
    }

    /// Asks the running gateway: `gatun WORDS…`.
    pub fn gatun(&self, words: &[&str]) -> Result<Finished> {
        process::finish(self.command(words)?, PATIENCE)
    }

    /// The same, going on in the background.
    pub fn start(&self, words: &[&str]) -> Result<Running> {
        Running::piped(self.command(words)?)
    }

    /// The same, its output in a file that can be read meanwhile.
    pub fn start_logged(&self, words: &[&str], log: &Path) -> Result<Running> {
        Running::logged(self.command(words)?, log)
    }

    fn command(&self, words: &[&str]) -> Result<std::process::Command> {
        let mut command = process::command_in(&self.netns, binary())?;
        command.args(words).env("GATUN_CONTROL", &self.control);
        Ok(command)
    }

    /// The lines of `gatun conntrack list FILTER…`, each one parsed, which proves its format.
    pub fn flows(&self, filter: &[&str]) -> Result<Vec<FlowLine>> {
        let list = self.gatun(&[&["conntrack", "list"], filter].concat())?.success()?;
        list.lines().map(|line| line.parse().with_context(|| format!("conntrack line: {line}"))).collect()
    }

    /// How many flows there are.
    pub fn flow_count(&self) -> Result<u64> {
        let count = self.gatun(&["conntrack", "count"])?.success()?;
        count.trim().parse().with_context(|| format!("conntrack count: {count}"))
    }

    /// The `/metrics` page.
    pub fn metrics(&self) -> Result<String> {
        let url = format!("http://127.0.0.1:{}/metrics", self.setup.metrics_port);
        let mut curl = process::command_in(&self.netns, "curl")?;
        curl.args(["-sSf", "--max-time", "5", &url]);
        process::finish(curl, PATIENCE)?.success()
    }

    /// The sum of a metric's samples that have all of these labels (`name="value"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let page = self.metrics()?;
        let mut samples = 0;
        let mut sum = 0.0;
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (metric, series_labels) = series.split_once('{').unwrap_or((series, ""));
            if metric == name && labels.iter().all(|label| series_labels.contains(label)) {
                samples += 1;
                sum += value.parse::<f64>().with_context(|| line.to_string())?;
            }
        }
        ensure!(samples > 0, "no metric {name} {labels:?} in:\n{page}");
        Ok(sum)
    }

    /// Writes the configuration with other services, without telling the gateway.
    pub fn rewrite(&self, lab: &Lab, services: &str) -> Result<()> {
        Ok(fs::write(&self.config, self.setup.toml(lab, services))?)
    }

    /// Reloads with other services.
    pub fn reload(&self, lab: &Lab, services: &str) -> Result<()> {
        self.rewrite(lab, services)?;
        self.gatun(&["reload"])?.success().map(drop)
    }

    /// SIGTERM: it has to end well and soon.
    pub fn stop(&self) -> Result<()> {
        self.running.borrow_mut().stop(Duration::from_secs(10)).with_context(|| self.log_text())
    }

    /// SIGKILL: it cannot undo anything.
    pub fn crash(&self) {
        self.running.borrow_mut().kill();
    }

    /// Starts it again after [`Gateway::stop`] or [`Gateway::crash`].
    pub fn restart(&self, lab: &Lab) -> Result<()> {
        *self.running.borrow_mut() = self.setup.launch(lab, &self.config, &self.log)?;
        self.wait_until_ready()
    }

    /// SIGHUP: reload.
    pub fn hang_up(&self) {
        self.running.borrow().signal(libc::SIGHUP);
    }

    pub fn alive(&self) -> bool {
        self.running.borrow_mut().alive()
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends the capture, so that its last packets are in the file.
    pub fn stop_capture(&self) {
        self.capture.borrow_mut().take();
    }
}

/// One `[[service]]` table; `servers` are addresses (with ports) and weights.
pub fn service(name: &str, listen: &str, protocol: &str, scheduler: &str, servers: &[(&str, u32)]) -> String {
    let mut table = format!(
        "\n[[service]]\nname = \"{name}\"\nlisten = \"{listen}\"\nprotocol = \"{protocol}\"\nmethod = \"nat\"\n\
         scheduler = \"{scheduler}\"\n"
    );
    for (address, weight) in servers {
        write!(table, "\n  [[service.server]]\n  address = \"{address}\"\n  weight = {weight}\n")
            .expect("a String takes everything");
    }
    table
}
