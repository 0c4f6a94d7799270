//! `gatun top`: a live view.
//!
//! The view asks for the status every so often, as `gatun status` does, and keeps the last rates of each service for its
//! sparkline. What is drawn follows from that alone ([`screen::draw`]), so it is tested without a terminal. The terminal
//! is given back as it was however the view ends: by a key, a signal, an error or a panic.

mod screen;

use std::collections::{HashMap, VecDeque};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::Context;
use super::client::Client;
use crate::control::api::{self, Request};

/// Rates that are kept for a sparkline.
const HISTORY: usize = 120;
/// How often keys are looked for: what is typed is seen at once.
const KEYS: Duration = Duration::from_millis(100);

/// Show rates, flows and drops of services and servers as they change
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds between two looks
    #[arg(long, short, value_name = "SECONDS", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=60))]
    interval: u64,
}

/// What servers and services are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Configured,
    Flows,
    Rate,
    Traffic,
}

impl Sort {
    const ALL: [Sort; 4] = [Sort::Configured, Sort::Flows, Sort::Rate, Sort::Traffic];

    fn word(self) -> &'static str {
        match self {
            Sort::Configured => "configured",
            Sort::Flows => "flows",
            Sort::Rate => "new flows",
            Sort::Traffic => "traffic",
        }
    }

    fn next(self) -> Sort {
        let at = Sort::ALL.iter().position(|sort| *sort == self).unwrap_or_default();
        Sort::ALL[(at + 1) % Sort::ALL.len()]
    }
}

/// What the view shows.
struct View {
    status: Option<api::Status>,
    /// Why there is no newer one.
    trouble: Option<String>,
    /// New flows per second, by service, the latest last; under no name, of all.
    history: HashMap<String, VecDeque<u64>>,
    sort: Sort,
    /// The service whose servers are shown.
    chosen: usize,
    /// Servers that are scrolled past.
    scrolled: usize,
    on_servers: bool,
}

impl View {
    fn new() -> View {
        View {
            status: None,
            trouble: None,
            history: HashMap::new(),
            sort: Sort::Configured,
            chosen: 0,
            scrolled: 0,
            on_servers: false,
        }
    }

    fn take(&mut self, news: Result<api::Status, String>) {
        let status = match news {
            Ok(status) => status,
            Err(trouble) => {
                self.trouble = Some(trouble);
                return;
            }
        };
        self.trouble = None;
        let now = status.services.iter().map(|service| (service.name.clone(), screen::rates(service).flows));
        let now: HashMap<String, f64> = now.chain([(String::new(), status.rates.flows)]).collect();
        self.history.retain(|name, _| now.contains_key(name));
        for (name, flows) in now {
            let history = self.history.entry(name).or_default();
            if history.len() == HISTORY {
                history.pop_front();
            }
            history.push_back(flows.round() as u64);
        }
        self.chosen = self.chosen.min(status.services.len().saturating_sub(1));
        self.status = Some(status);
    }

    /// Whether the view goes on.
    fn key(&mut self, key: KeyEvent) -> bool {
        let services = self.status.as_ref().map_or(0, |status| status.services.len());
        let chosen = if self.on_servers { &mut self.scrolled } else { &mut self.chosen };
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Tab | KeyCode::BackTab | KeyCode::Left | KeyCode::Right => self.on_servers = !self.on_servers,
            KeyCode::Down | KeyCode::Char('j') => *chosen += 1,
            KeyCode::Up | KeyCode::Char('k') => *chosen = chosen.saturating_sub(1),
            KeyCode::PageDown => *chosen += 10,
            KeyCode::PageUp => *chosen = chosen.saturating_sub(10),
            KeyCode::Home => *chosen = 0,
            _ => {}
        }
        if !self.on_servers && !matches!(key.code, KeyCode::Char('s')) {
            self.scrolled = 0;
        }
        self.chosen = self.chosen.min(services.saturating_sub(1));
        true
    }
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    if !io::stdout().is_terminal() {
        bail!("gatun top needs a terminal; gatun status --json is for programs");
    }
    // The first one tells by its error that there is no gateway; later the view waits for it to come back.
    let first: api::Status = context.connect()?.call(&Request::Status {})?;
    let news = poll(context.socket(), Duration::from_secs(args.interval));
    let ended = ended_by_signal()?;
    let mut view = View::new();
    view.take(Ok(first));
    // Gives the terminal back when this function ends and, by a hook, at a panic.
    let mut terminal = ratatui::try_init()?;
    let outcome = show(&mut terminal, &mut view, &news, &ended);
    ratatui::try_restore()?;
    outcome
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    view: &mut View,
    news: &Receiver<Result<api::Status, String>>,
    ended: &Receiver<()>,
) -> Result<()> {
    loop {
        // This also asks for the size, so that a resized terminal is drawn anew.
        terminal.draw(|frame| screen::draw(frame, view))?;
        let deadline = Instant::now() + KEYS;
        while event::poll(deadline.saturating_duration_since(Instant::now()))? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    if !view.key(key) {
                        return Ok(());
                    }
                    break;
                }
                Event::Resize(..) => break,
                _ => {}
            }
        }
        match ended.recv_timeout(Duration::ZERO) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        for status in news.try_iter() {
            view.take(status);
        }
    }
}

/// Asks for the status again and again, on a thread of its own: a gateway that does not answer must not hold up the keys.
fn poll(socket: PathBuf, interval: Duration) -> Receiver<Result<api::Status, String>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut client = None;
        loop {
            thread::sleep(interval);
            let asked = match client.take() {
                Some(client) => Ok(client),
                None => Client::connect(&socket),
            };
            let status = asked.and_then(|mut asked| {
                let status = asked.call(&Request::Status {})?;
                client = Some(asked);
                Ok(status)
            });
            if sender.send(status.map_err(|error| format!("{error:#}"))).is_err() {
                return;
            }
        }
    });
    receiver
}

/// SIGTERM and SIGHUP end the view as a key does; a Ctrl-C is a key while the terminal is raw, and SIGINT otherwise.
fn ended_by_signal() -> Result<Receiver<()>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _guard = runtime.enter();
        crate::control::daemon::Signals::new()?
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = signals.terminate.recv() => {}
                _ = signals.interrupt.recv() => {}
                _ = signals.hangup.recv() => {}
            }
        });
        let _ = sender.send(());
    });
    Ok(receiver)
}
