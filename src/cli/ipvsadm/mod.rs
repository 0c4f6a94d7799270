//! `gatun ipvsadm`, and the binary called as `ipvsadm`: the command line of ipvsadm 1.31 for a gateway.
//!
//! Grammar, messages, outputs and exit codes are those of ipvsadm 1.31, so that scripts run unchanged: 0 done, 2 wrong usage,
//! 255 a change that was not made, 1 nothing to list and no gateway to ask. Each room has one matter: what
//! words say ([`parse`], with [`popt`] and [`legal`] below it) is a [`command::Command`]; what a command does to the table
//! is [`apply`]; what is printed of the table is [`list`], [`connections`] and [`save`]; which gateway it is about, and how
//! one is started, is [`autostart`].

mod apply;
mod autostart;
mod command;
mod connections;
mod help;
mod legal;
mod list;
mod names;
mod parse;
mod popt;
mod save;
mod session;
mod table;
#[cfg(test)]
mod tests;

pub use autostart::default_socket;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::is_broken_pipe;
use super::output::{self, Output};

/// The command line of ipvsadm, for the running gateway (see `gatun ipvsadm --help`)
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// As for ipvsadm 1.31
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    words: Vec<OsString>,
}

/// The programs that this binary is when it is called so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    Ipvsadm,
    /// The scripts that the original comes with: `ipvsadm -S`, and `ipvsadm -C` followed by `ipvsadm -R`.
    Save,
    Restore,
}

/// Runs as ipvsadm if the program is called so; the words are those of the whole command line.
pub(super) fn called(words: &[OsString]) -> Option<ExitCode> {
    let (program, rest) = words.split_first()?;
    let called = match Path::new(program).file_name()?.to_str()? {
        "ipvsadm" => Called::Ipvsadm,
        "ipvsadm-save" => Called::Save,
        "ipvsadm-restore" => Called::Restore,
        _ => return None,
    };
    let control = std::env::var_os("GATUN_CONTROL").filter(|path| !path.is_empty()).map(PathBuf::from);
    Some(main(called, &program.to_string_lossy(), rest, control))
}

/// `gatun ipvsadm WORDS…`.
pub(super) fn run(args: &Args, control: Option<PathBuf>) -> ExitCode {
    main(Called::Ipvsadm, "gatun ipvsadm", &args.words, control)
}

fn main(called: Called, program: &str, words: &[OsString], mut control: Option<PathBuf>) -> ExitCode {
    let mut words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(path) = take_control(&mut words) {
        control = Some(path);
    }
    let mut output = Output::stdout();
    let mut session = session::Session::new(program, control, &mut output);
    let done = match called {
        Called::Ipvsadm => session.run(&words),
        Called::Save => session.save(&words),
        Called::Restore => session.restore_anew(),
    };
    let done = done.and_then(|code| {
        output.flush()?;
        Ok(code)
    });
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// `--control PATH` in front: the one option that the original has not.
fn take_control(words: &mut Vec<String>) -> Option<PathBuf> {
    let first = words.first()?;
    if let Some(path) = first.strip_prefix("--control=") {
        let path = PathBuf::from(path);
        words.remove(0);
        return Some(path);
    }
    if first != "--control" || words.len() < 2 {
        return None;
    }
    words.drain(..2).nth(1).map(PathBuf::from)
}
