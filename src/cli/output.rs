//! Standard output and standard error.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use serde::Serialize;

/// Standard output, buffered; colours only on a terminal.
pub struct Output {
    out: BufWriter<Stdout>,
    terminal: bool,
}

/// What a line says at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Colour {
    /// Something does not work.
    Red,
    /// Something is not as usual.
    Yellow,
}

impl Output {
    pub fn stdout() -> Output {
        let out = io::stdout();
        // https://no-color.org: set and not empty.
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let terminal = out.is_terminal() && !plain;
        Output { out: BufWriter::with_capacity(64 * 1024, out), terminal }
    }

    pub fn line(&mut self, line: &str) -> io::Result<()> {
        self.out.write_all(line.as_bytes())?;
        self.out.write_all(b"\n")
    }

    /// A line that stands out.
    pub fn heading(&mut self, line: &str) -> io::Result<()> {
        if self.terminal { self.line(&format!("\x1b[1m{line}\x1b[0m")) } else { self.line(line) }
    }

    /// A line in a colour.
    pub fn coloured(&mut self, colour: Colour, line: &str) -> io::Result<()> {
        let code = match colour {
            Colour::Red => 31,
            Colour::Yellow => 33,
        };
        if self.terminal { self.line(&format!("\x1b[{code}m{line}\x1b[0m")) } else { self.line(line) }
    }

    /// One JSON value on a line of its own.
    pub fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.out.write_all(b"\n")
    }

    pub fn raw(&mut self) -> &mut impl Write {
        &mut self.out
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A line on standard error; if that is closed, nobody wants to know.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
