//! One invocation: asks the gateway, changes it, prints.

use std::io::{self, BufRead};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::apply::Plan;
use super::autostart::Place;
use super::command::{Command, List, Listed};
use super::connections::{self, Connection};
use super::names::{Printer, System};
use super::parse::{Complaint, parse};
use super::table::Table;
use super::{help, list, save};
use crate::cli::client::{Client, Part};
use crate::cli::output::{Output, complain};
use crate::control::api::{self, Fault, Request};

/// Exit codes of the original besides 0 and 2.
const NOT_DONE: u8 = 255;
const NOT_LISTED: u8 = 1;

/// How often an edit is tried again when somebody else changed the gateway meanwhile.
const ATTEMPTS: usize = 5;

/// In this time the gateway finds the MAC address of a server that was added for direct routing and answers. What comes for
/// it earlier is lost.
const FINDING: Duration = Duration::from_millis(60);

/// Bytes that a restore reads at most.
const LONGEST_RESTORE: u64 = 16 << 20;

/// How long it is waited for a gateway that is ending, and between two looks.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What came of a change.
enum Tried {
    /// With this exit code.
    Done(u8),
    /// The table that it was made for is not the one there is now.
    Overtaken,
    /// The gateway has stopped just now because nobody needed it, or is about to.
    Gone(anyhow::Error),
}

pub struct Session<'a> {
    program: &'a str,
    place: Place,
    names: System,
    output: &'a mut Output,
}

impl<'a> Session<'a> {
    pub fn new(program: &'a str, control: Option<PathBuf>, output: &'a mut Output) -> Session<'a> {
        Session { program, place: Place::new(control), names: System::new(), output }
    }

    /// Does what `words` say; answers the exit code.
    pub fn run(&mut self, words: &[String]) -> Result<u8> {
        if words.is_empty() {
            return self.list(&List::default());
        }
        match parse(self.program, words, &self.names) {
            Ok(Command::Restore) => self.restore(false),
            Ok(command) => self.perform(&command),
            Err(complaint) => Ok(complain_of(&complaint)),
        }
    }

    /// `ipvsadm-save [-n]`.
    pub fn save(&mut self, words: &[String]) -> Result<u8> {
        self.perform(&Command::Save { numeric: words.iter().any(|word| word == "-n") })
    }

    /// `ipvsadm-restore`: the rules that are read, in place of those that there are.
    pub fn restore_anew(&mut self) -> Result<u8> {
        self.restore(true)
    }

    fn perform(&mut self, command: &Command) -> Result<u8> {
        match command {
            Command::Help => self.print(&help::text(self.program)),
            Command::Version => self.print(help::VERSION),
            Command::List(list) => self.list(list),
            Command::Save { numeric } => {
                let table = self.table()?;
                for line in save::rules(&table, &Printer::new(&self.names, *numeric)) {
                    self.output.line(&line)?;
                }
                if table.services.iter().flat_map(|service| &service.servers).any(|server| server.is_fullnat) {
                    complain(
                        "servers by fullnat are saved as -m, and would come back by nat: ipvsadm has no option for them; \
                         `gatun save` loses nothing",
                    );
                }
                Ok(0)
            }
            Command::Zero(key) => self.zero(key.as_ref()),
            Command::StartDaemon(_) => {
                complain(
                    "gatun does not synchronise connections between gateways yet: there is no such daemon to start",
                );
                Ok(NOT_DONE)
            }
            Command::StopDaemon(_) => {
                complain("No daemon is running");
                Ok(NOT_DONE)
            }
            command => self.change(std::slice::from_ref(command)),
        }
    }

    fn print(&mut self, text: &str) -> Result<u8> {
        self.output.line(text.trim_end_matches('\n'))?;
        Ok(0)
    }

    /// The table; an empty one where there is no gateway, as IPVS has when nothing was done to it.
    fn table(&mut self) -> Result<Table> {
        match self.place.client()? {
            Some(mut client) => Ok(Table::new(&status(&mut client)?)),
            None => Ok(Table::default()),
        }
    }

    fn list(&mut self, list: &List) -> Result<u8> {
        match list.what {
            Listed::Connections => return self.list_connections(list),
            // There are none.
            Listed::Daemons => return Ok(0),
            Listed::Services | Listed::One(_) | Listed::Timeouts => {}
        }
        let table = self.table()?;
        if list.what == Listed::Timeouts {
            return self.print(&list::timeouts(table.timeouts));
        }
        if let Listed::One(key) = list.what
            && table.find(&key).is_none()
        {
            complain("No such service");
            return Ok(NOT_LISTED);
        }
        self.print(&list::services(&table, list, &Printer::new(&self.names, list.numeric)))
    }

    fn list_connections(&mut self, list: &List) -> Result<u8> {
        self.output.line(&connections::heading(list.with_engines))?;
        let Some(mut client) = self.place.client()? else { return Ok(0) };
        let status = status(&mut client)?;
        let servers: Vec<api::Server> = status.services.iter().flat_map(|service| service.servers.clone()).collect();
        let printer = Printer::new(&self.names, list.numeric);
        let request = Request::ConntrackList { filter: api::Filter::default() };
        let output = &mut *self.output;
        let _: Option<api::Shown> = client.stream(&request, true, |part: Part<api::Flow>| {
            if let Part::Item(flow) = part
                && let Some(connection) = Connection::new(&flow, &servers)
            {
                output.line(&connection.line(&printer))?;
            }
            Ok(())
        })?;
        let table = Table::new(&status);
        let _: Option<api::Shown> =
            client.stream(&Request::PersistenceList {}, true, |part: Part<api::KeptClient>| {
                if let Part::Item(kept) = part
                    && let Some(template) = Connection::template(&kept, &table)
                {
                    output.line(&template.line(&printer))?;
                }
                Ok(())
            })?;
        Ok(0)
    }

    fn zero(&mut self, key: Option<&super::command::Key>) -> Result<u8> {
        let service = match key {
            None => None,
            Some(key) => match self.table()?.find(key) {
                Some(service) => Some(service.name.clone()),
                None => {
                    complain("No such service");
                    return Ok(NOT_DONE);
                }
            },
        };
        if let Some(mut client) = self.place.client()? {
            let _: api::Zeroed = client.call(&Request::CountersZero { service })?;
        }
        Ok(0)
    }

    /// The commands as one change. Starts a gateway where there is none and something is to be added.
    fn change(&mut self, commands: &[Command]) -> Result<u8> {
        let patience = Instant::now() + PATIENCE;
        let mut attempts = 0;
        loop {
            match self.try_change(commands)? {
                Tried::Done(code) => return Ok(code),
                Tried::Overtaken => {
                    attempts += 1;
                    if attempts == ATTEMPTS {
                        anyhow::bail!("the gateway is changed by others all the time: nothing was done");
                    }
                }
                Tried::Gone(error) => {
                    if Instant::now() >= patience {
                        return Err(error);
                    }
                    std::thread::sleep(LOOK_AGAIN);
                }
            }
        }
    }

    fn try_change(&mut self, commands: &[Command]) -> Result<Tried> {
        let client = match self.place.client() {
            Ok(client) => client,
            // Between two looks.
            Err(error) if matches!(self.place, Place::Here(_)) => return Ok(Tried::Gone(error)),
            Err(error) => return Err(error),
        };
        let (mut client, table) = match client {
            Some(mut client) => match status(&mut client) {
                Ok(status) => (Some(client), Table::new(&status)),
                Err(error) if is_gone(&error) => return Ok(Tried::Gone(error)),
                Err(error) => return Err(error),
            },
            None => (None, Table::default()),
        };
        let mut plan = Plan::new(table.clone());
        let refused: Vec<String> = commands.iter().filter_map(|command| plan.add(command).err()).collect();
        if !plan.edits.is_empty() {
            let Some(client) = &mut client else {
                self.place.start()?;
                return Ok(Tried::Overtaken);
            };
            let has_new_neighbours = plan.edits.iter().any(adds_neighbour);
            let edited: Result<api::Difference> = client.call(&Request::Edit { edits: plan.edits, save: false });
            if edited.is_ok() && has_new_neighbours {
                std::thread::sleep(FINDING);
            }
            if let Err(error) = edited {
                if is_gone(&error) {
                    return Ok(Tried::Gone(error));
                }
                // Somebody else was faster.
                match self.table() {
                    Ok(now) if now.is_set_up_as(&table) => {}
                    Ok(_) => return Ok(Tried::Overtaken),
                    Err(error) if is_gone(&error) => return Ok(Tried::Gone(error)),
                    Err(error) => return Err(error),
                }
                complain(&format!("{error:#}"));
                return Ok(Tried::Done(NOT_DONE));
            }
        }
        refused.iter().for_each(|message| complain(message));
        Ok(Tried::Done(if refused.is_empty() { 0 } else { NOT_DONE }))
    }

    /// Commands from standard input: rules are gathered and become one change; before any other command, and at the end.
    fn restore(&mut self, anew: bool) -> Result<u8> {
        let mut commands = Vec::new();
        if anew {
            commands.push(Command::Clear);
        }
        let input = io::Read::take(io::stdin().lock(), LONGEST_RESTORE);
        for (number, line) in (1..).zip(io::BufReader::new(input).lines()) {
            let words = save::words(&line.context("the rules cannot be read")?);
            if words.is_empty() {
                continue;
            }
            match parse(self.program, &words, &self.names) {
                // As the original, which would read for ever.
                Ok(Command::Restore) => return Ok(complain_of(&Complaint::try_help(self.program))),
                Ok(command) => commands.push(command),
                Err(complaint) => {
                    let code = complain_of(&complaint);
                    complain(&format!("line {number} of the rules: nothing was changed"));
                    return Ok(code);
                }
            }
        }
        let mut worst = 0;
        let mut rules = Vec::new();
        for command in commands {
            if is_rule(&command) {
                rules.push(command);
                continue;
            }
            worst = worst.max(self.change(&std::mem::take(&mut rules))?);
            worst = worst.max(self.perform(&command)?);
        }
        Ok(worst.max(self.change(&rules)?))
    }
}

/// Whether it says that the gateway ends: that it takes no more orders, or that the connection broke.
fn is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Fault>().is_none_or(|fault| *fault == Fault::stopping())
}

fn is_rule(command: &Command) -> bool {
    use Command::{Add, AddServer, Clear, Delete, DeleteServer, Edit, EditServer, SetTimeouts};
    matches!(
        command,
        Add(_) | Edit(_) | Delete(_) | Clear | AddServer(..) | EditServer(..) | DeleteServer(..) | SetTimeouts(_)
    )
}

/// Whether a server is to be reached by its MAC address from now on.
fn adds_neighbour(edit: &api::Edit) -> bool {
    match edit {
        api::Edit::AddServer { keys, .. } | api::Edit::SetServer { keys, .. } => {
            keys.get("method").is_some_and(|method| method == "direct")
        }
        _ => false,
    }
}

fn status(client: &mut Client) -> Result<api::Status> {
    client.call(&Request::Status {})
}

fn complain_of(complaint: &Complaint) -> u8 {
    complain(&complaint.message);
    complaint.code
}

#[cfg(test)]
mod tests;
