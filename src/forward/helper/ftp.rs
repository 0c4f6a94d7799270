//! FTP (RFC 959, RFC 2428): data connections are announced on the control connection.
//!
//! # What is read
//!
//! | who | line | what follows |
//! |---|---|---|
//! | client | `PORT h1,h2,h3,h4,p1,p2`, `EPRT \|n\|address\|port\|` | the server connects to the client |
//! | server | `227 … h1,h2,h3,h4,p1,p2 …`, `229 … (\|\|\|port\|) …` | the client connects to the server |
//! | both | `AUTH TLS` and `234` (RFC 4217) | the connection is encrypted: it is left alone for good |
//!
//! A reply counts only as the last line of a reply (RFC 959 section 4.2: lines within it may look like anything), and only
//! while a `PASV` or `EPSV` waits for it that has not failed: so none in a banner, a help text or a listing does. The address in a 227 may stand
//! anywhere behind the code, with parentheses or without (RFC 1123 section 4.1.2.6).
//!
//! # What is allowed
//!
//! An end announces itself and nobody else (RFC 2577 section 3): a client its own address; a server its own, or the VIP, as
//! servers do that are told which address clients see. A server with several addresses has to announce the one that it is
//! configured with at the gateway. Other addresses, and ports below 1024, make no expectation, and the line goes on as it
//! is: whether to refuse it is up to the other end.
//!
//! # Lines in several segments
//!
//! What cannot change goes on at once; the argument that will waits until it is whole (see [`super::sequence`]). An argument
//! that does not end where it should goes on as it is. One that never ends is not delivered: with the connection's end it
//! is no line. Where the server sees the client's own address, a client's argument does not change, and never waits.

use super::{Desk, Helper};
use crate::flow::Sender;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

/// Bytes of an argument at most. The longest that means something, an `EPRT` with an IPv6 address, has less than 64.
const MAX_ARGUMENT: usize = 80;
/// Commands whose answers are waited for, at most; the oldest are forgotten. Clients wait for each.
const MAX_ASKED: usize = 16;

const CR: u8 = b'\r';
const LF: u8 = b'\n';

/// One control connection.
pub struct Ftp {
    /// Who sends commands.
    client: Sender,
    commands: Commands,
    replies: Replies,
    /// The commands without an answer so far, the oldest first: whether they are passive ones.
    asked: VecDeque<bool>,
    /// TLS was asked for.
    asks_tls: bool,
}

impl Ftp {
    /// `client`: who sends commands.
    pub fn new(client: Sender) -> Ftp {
        let (commands, replies) = (Commands::default(), Replies::default());
        Ftp { client, commands, replies, asked: VecDeque::new(), asks_tls: false }
    }
}

impl Helper for Ftp {
    fn read(&mut self, sender: Sender, bytes: &[u8], desk: &mut Desk<'_>) {
        match sender == self.client {
            true => self.read_commands(bytes, desk),
            false => self.read_replies(bytes, desk),
        }
    }
}

/// Where in a command the client is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Commands {
    /// In the word that begins the line.
    Word(Vec<u8>),
    /// In an argument that matters; part of it has been taken out of earlier segments if `waits`.
    Argument { of: Announces, text: Vec<u8>, waits: bool },
    /// In the rest of a line that does not.
    Rest,
}

/// A command with an argument that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Announces {
    Port,
    ExtendedPort,
    /// `EPSV`: of what follows, `ALL` asks for no port (RFC 2428 section 4).
    Passive,
}

impl Default for Commands {
    fn default() -> Commands {
        Commands::Word(Vec::new())
    }
}

impl Ftp {
    fn read_commands(&mut self, bytes: &[u8], desk: &mut Desk<'_>) {
        // Where the argument begins in `bytes`.
        let mut from = 0;
        for (at, &byte) in bytes.iter().enumerate() {
            let is_end = byte == LF;
            match &mut self.commands {
                Commands::Word(word) => match byte {
                    CR => {}
                    LF | b' ' => {
                        let word = std::mem::take(word).to_ascii_uppercase();
                        self.commands = self.command(&word, byte == b' ');
                        from = at + 1;
                    }
                    // The longest word that is looked for has four letters.
                    _ if word.len() > 4 => {
                        self.commands = Commands::Rest;
                        self.ask(false);
                    }
                    _ => word.push(byte),
                },
                Commands::Argument { text, .. } if !matches!(byte, CR | LF) && text.len() < MAX_ARGUMENT => {
                    text.push(byte);
                }
                Commands::Argument { of, text, waits } => {
                    let (of, waits, text) = (*of, *waits, std::mem::take(text));
                    self.commands = Commands::Rest;
                    if of == Announces::Passive
                        && text.trim_ascii().eq_ignore_ascii_case(b"ALL")
                        && let Some(last) = self.asked.back_mut()
                    {
                        *last = false;
                    }
                    let shown = if matches!(byte, CR | LF) { active(self.client, of, &text, desk) } else { None };
                    put(desk, (from, at), byte, waits, text, shown);
                }
                Commands::Rest => {}
            }
            if is_end {
                self.commands = Commands::default();
            }
        }
        let Commands::Argument { of: Announces::Port | Announces::ExtendedPort, text, waits } = &mut self.commands
        else {
            return;
        };
        if desk.is_hidden(self.client) && !text.is_empty() && !wait(desk, from..bytes.len(), waits) {
            self.commands = Commands::Rest;
        }
    }

    fn command(&mut self, word: &[u8], has_argument: bool) -> Commands {
        if !word.is_empty() {
            self.ask(matches!(word, b"PASV" | b"EPSV"));
        }
        self.asks_tls |= word == b"AUTH";
        let of = match word {
            b"PORT" => Announces::Port,
            b"EPRT" => Announces::ExtendedPort,
            b"EPSV" => Announces::Passive,
            _ => return Commands::Rest,
        };
        if has_argument { Commands::Argument { of, text: Vec::new(), waits: false } } else { Commands::Rest }
    }

    fn ask(&mut self, is_passive: bool) {
        if self.asked.len() == MAX_ASKED {
            self.asked.pop_front();
        }
        self.asked.push_back(is_passive);
    }

    /// A command has its answer, as far as can be told: servers may say more than they are asked, and less. A passive one
    /// waits for its port, or until it fails.
    fn answered(&mut self, code: [u8; 3]) {
        match code {
            // Nobody asks for the greeting; and what is preliminary is no answer yet (RFC 959 section 4.2.1).
            [b'2', b'2', b'0'] | [b'1', ..] => {}
            [b'4' | b'5', ..] => drop(self.asked.pop_front()),
            _ if self.asked.front() == Some(&false) => drop(self.asked.pop_front()),
            _ => {}
        }
    }

    /// Takes out the oldest passive command, and those before it: they have no answer to come. Whether there was one.
    fn take_passive(&mut self) -> bool {
        let passive = self.asked.iter().position(|is_passive| *is_passive);
        self.asked.drain(..passive.map_or(0, |at| at + 1));
        passive.is_some()
    }
}

/// Where in a reply the server is.
#[derive(Clone, Debug, Default)]
struct Replies {
    line: Line,
    /// The code of a reply of several lines, from its first line to its last.
    within: Option<[u8; 3]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    /// In its first four bytes.
    Code(Vec<u8>),
    /// Behind the code of a passive reply, before its argument.
    Text { is_extended: bool },
    /// In the argument; part of it has been taken out of earlier segments if `waits`.
    Argument { is_extended: bool, text: Vec<u8>, waits: bool },
    /// In the rest of a line that does not matter.
    Rest,
}

impl Default for Line {
    fn default() -> Line {
        Line::Code(Vec::new())
    }
}

impl Ftp {
    fn read_replies(&mut self, bytes: &[u8], desk: &mut Desk<'_>) {
        // Where the argument begins in `bytes`.
        let mut from = 0;
        for (at, &byte) in bytes.iter().enumerate() {
            match &mut self.replies.line {
                Line::Code(code) if byte == LF => code.clear(),
                Line::Code(code) => {
                    code.push(byte);
                    if let [a, b, c, mark] = code[..] {
                        self.replies.line = self.reply([a, b, c], mark, desk);
                    }
                }
                Line::Text { .. } if byte == LF => self.replies.line = Line::default(),
                Line::Text { is_extended: true } if byte == b'(' => {
                    from = at + 1;
                    self.replies.line = Line::Argument { is_extended: true, text: Vec::new(), waits: false };
                }
                Line::Text { is_extended: false } if byte.is_ascii_digit() => {
                    from = at;
                    self.replies.line = Line::Argument { is_extended: false, text: vec![byte], waits: false };
                }
                Line::Text { .. } => {}
                Line::Argument { is_extended, text, waits } => {
                    let goes_on = match is_extended {
                        true => !matches!(byte, b')' | CR | LF),
                        false => byte.is_ascii_digit() || byte == b',',
                    };
                    if goes_on && text.len() < MAX_ARGUMENT {
                        text.push(byte);
                        continue;
                    }
                    let (is_extended, waits, text) = (*is_extended, *waits, std::mem::take(text));
                    let shown = passive(self.client.other(), is_extended, &text, desk);
                    self.replies.line = match (&shown, byte) {
                        (_, LF) => Line::default(),
                        (None, _) => Line::Text { is_extended },
                        (Some(_), _) => Line::Rest,
                    };
                    put(desk, (from, at), byte, waits, text, shown);
                }
                Line::Rest if byte == LF => self.replies.line = Line::default(),
                Line::Rest => {}
            }
        }
        let Line::Argument { text, waits, .. } = &mut self.replies.line else { return };
        if desk.is_hidden(self.client.other()) && !text.is_empty() && !wait(desk, from..bytes.len(), waits) {
            self.replies.line = Line::Rest;
        }
    }

    /// A reply's line begins with this code and the byte behind it (RFC 959 section 4.2).
    fn reply(&mut self, code: [u8; 3], mark: u8, desk: &mut Desk<'_>) -> Line {
        match self.replies.within {
            Some(within) if within != code || mark != b' ' => return Line::Rest,
            None if mark == b'-' && code.iter().all(u8::is_ascii_digit) => {
                self.replies.within = Some(code);
                return Line::Rest;
            }
            _ => self.replies.within = None,
        }
        match &code {
            _ if mark != b' ' => Line::Rest,
            b"227" | b"229" if self.take_passive() => Line::Text { is_extended: code == *b"229" },
            b"234" if self.asks_tls => {
                desk.leave_alone();
                Line::Rest
            }
            _ => {
                self.answered(code);
                Line::Rest
            }
        }
    }
}

/// What there is of an argument at the end of a segment, `range` of it, waits for the rest. `false`: there is no room for that.
fn wait(desk: &mut Desk<'_>, range: Range<usize>, waits: &mut bool) -> bool {
    if *waits {
        desk.replace(0..range.end, Vec::new());
    } else if desk.has_room(2) {
        // One for what waits, one for what comes in its place.
        *waits = true;
        desk.replace(range, Vec::new());
    } else {
        return false;
    }
    true
}

/// Puts `shown` in place of an argument, which was `text`, and stands from `from` to the byte at `at` that ends it.
fn put(desk: &mut Desk<'_>, (from, at): (usize, usize), end: u8, waits: bool, text: Vec<u8>, shown: Option<Vec<u8>>) {
    match (shown, waits) {
        // What ends the argument comes with it: of a range of bytes there must be one.
        (shown, true) => {
            let mut text = shown.unwrap_or(text);
            text.push(end);
            desk.replace(0..at + 1, text);
        }
        (Some(shown), false) if shown != text => desk.replace(from..at, shown),
        _ => {}
    }
}

/// What the server is to read in place of the argument of `PORT` or `EPRT`; `None`: just that.
fn active(client: Sender, of: Announces, text: &[u8], desk: &mut Desk<'_>) -> Option<Vec<u8>> {
    let (address, port) = match of {
        Announces::Port => address_and_port(text)?,
        Announces::ExtendedPort => extended(text)?,
        Announces::Passive => return None,
    };
    if desk.is_hidden(client) && !desk.has_room(1) {
        return None;
    }
    let (address, port) = desk.announce(client, Some(address.into()), port)?;
    match (of, address.ip()) {
        (Announces::Port, IpAddr::V4(address)) => Some(six(address, port)),
        (Announces::Port, _) => None,
        (_, address) => {
            let bar = char::from(*text.first()?);
            let family = if address.is_ipv4() { 1 } else { 2 };
            Some(format!("{bar}{family}{bar}{address}{bar}{port}{bar}").into_bytes())
        }
    }
}

/// What the client is to read in place of a passive reply's argument; `None`: just that.
fn passive(server: Sender, is_extended: bool, text: &[u8], desk: &mut Desk<'_>) -> Option<Vec<u8>> {
    if !desk.has_room(1) {
        return None;
    }
    if is_extended {
        let (delimiter, port) = port_alone(text)?;
        let (_, shown) = desk.announce(server, None, port)?;
        return Some(format!("{delimiter}{delimiter}{delimiter}{shown}{delimiter}").into_bytes());
    }
    let (address, port) = address_and_port(text)?;
    // The form has no room for another family.
    desk.vip().is_v4().then_some(())?;
    let (address, port) = desk.announce(server, Some(address.into()), port)?;
    let IpAddr::V4(address) = address.ip() else { return None };
    Some(six(address, port))
}

fn six(address: Ipv4Addr, port: u16) -> Vec<u8> {
    let [a, b, c, d] = address.octets();
    format!("{a},{b},{c},{d},{},{}", port >> 8, port & 0xff).into_bytes()
}

/// `h1,h2,h3,h4,p1,p2` (RFC 959 section 4.1.2, RFC 1123 section 4.1.2.12).
fn address_and_port(text: &[u8]) -> Option<(IpAddr, u16)> {
    let mut numbers = text.split(|byte| *byte == b',').map(number::<u8>);
    let mut next = || numbers.next().flatten();
    let address = Ipv4Addr::new(next()?, next()?, next()?, next()?);
    let port = u16::from_be_bytes([next()?, next()?]);
    numbers.next().is_none().then_some((IpAddr::V4(address), port))
}

/// `|n|address|port|`, with any one printable character for the bar (RFC 2428 section 2).
fn extended(text: &[u8]) -> Option<(IpAddr, u16)> {
    let (delimiter, fields) = delimited(text)?;
    let mut fields = fields.split(|byte| *byte == delimiter);
    let (family, address, port) = (fields.next()?, fields.next()?, fields.next()?);
    let address: IpAddr = std::str::from_utf8(address).ok()?.parse().ok()?;
    let agrees = matches!((family, address), (b"1", IpAddr::V4(_)) | (b"2", IpAddr::V6(_)));
    (agrees && fields.next().is_none()).then_some((address, number(port)?))
}

/// `|||port|` (RFC 2428 section 3), and its delimiter.
fn port_alone(text: &[u8]) -> Option<(char, u16)> {
    let (delimiter, fields) = delimited(text)?;
    let port = fields.strip_prefix(&[delimiter, delimiter])?;
    Some((char::from(delimiter), number(port)?))
}

/// The delimiter, and what stands between the first and the last one.
fn delimited(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [first @ 33..=126, fields @ .., last] if first == last && !first.is_ascii_digit() => Some((*first, fields)),
        _ => None,
    }
}

/// A decimal number of digits alone.
fn number<T: TryFrom<u32>>(digits: &[u8]) -> Option<T> {
    if digits.is_empty() || digits.len() > 5 {
        return None;
    }
    let add = |sum: u32, digit: &u8| digit.is_ascii_digit().then(|| sum * 10 + u32::from(digit - b'0'));
    T::try_from(digits.iter().try_fold(0, add)?).ok()
}
