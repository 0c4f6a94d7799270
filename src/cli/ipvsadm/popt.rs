//! The options, and how they are read from the words of a command line.
//!
//! ipvsadm reads them with popt: short options may be combined (`-Lnc`), an argument may stand in the same word with or
//! without `=` (`-w5`, `-w=5`, `--weight=5`) or in the next one, whatever that looks like, and what is no option may stand
//! anywhere. An optional argument in the next word must not begin with `-`. Long names are not abbreviated.

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    Argument,
    /// An argument, or none.
    Maybe,
}

/// The options. Some of them are commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Opt {
    AddService,
    EditService,
    DeleteService,
    Clear,
    List,
    Zero,
    AddServer,
    EditServer,
    DeleteServer,
    Set,
    Help,
    Version,
    Restore,
    Save,
    StartDaemon,
    StopDaemon,
    TcpService,
    UdpService,
    SctpService,
    FwmarkService,
    Scheduler,
    Persistent,
    Netmask,
    RealServer,
    Masquerading,
    Ipip,
    Gatewaying,
    Weight,
    UpperThreshold,
    LowerThreshold,
    Numeric,
    Connection,
    McastInterface,
    Syncid,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    Nosort,
    Sort,
    Exact,
    Ipv6,
    Ops,
    Pe,
    SchedFlags,
    McastGroup,
    McastPort,
    McastTtl,
    SyncMaxlen,
    TunInfo,
    TunType,
    TunPort,
    TunNocsum,
    TunCsum,
    TunRemcsum,
}

use Takes::{Argument, Maybe, Nothing};

/// Long name, short name (`\0`: none), what it takes.
#[rustfmt::skip]
const TABLE: &[(&str, char, Takes, Opt)] = &[
    ("add-service",     'A',  Nothing,  Opt::AddService),
    ("edit-service",    'E',  Nothing,  Opt::EditService),
    ("delete-service",  'D',  Nothing,  Opt::DeleteService),
    ("clear",           'C',  Nothing,  Opt::Clear),
    ("list",            'L',  Nothing,  Opt::List),
    ("list",            'l',  Nothing,  Opt::List),
    ("zero",            'Z',  Nothing,  Opt::Zero),
    ("add-server",      'a',  Nothing,  Opt::AddServer),
    ("edit-server",     'e',  Nothing,  Opt::EditServer),
    ("delete-server",   'd',  Nothing,  Opt::DeleteServer),
    ("set",             '\0', Nothing,  Opt::Set),
    ("help",            'h',  Nothing,  Opt::Help),
    ("version",         'v',  Nothing,  Opt::Version),
    ("restore",         'R',  Nothing,  Opt::Restore),
    ("save",            'S',  Nothing,  Opt::Save),
    ("start-daemon",    '\0', Argument, Opt::StartDaemon),
    ("stop-daemon",     '\0', Argument, Opt::StopDaemon),
    ("tcp-service",     't',  Argument, Opt::TcpService),
    ("udp-service",     'u',  Argument, Opt::UdpService),
    ("sctp-service",    '\0', Argument, Opt::SctpService),
    ("fwmark-service",  'f',  Argument, Opt::FwmarkService),
    ("scheduler",       's',  Argument, Opt::Scheduler),
    ("persistent",      'p',  Maybe,    Opt::Persistent),
    ("netmask",         'M',  Argument, Opt::Netmask),
    ("real-server",     'r',  Argument, Opt::RealServer),
    ("masquerading",    'm',  Nothing,  Opt::Masquerading),
    ("ipip",            'i',  Nothing,  Opt::Ipip),
    ("gatewaying",      'g',  Nothing,  Opt::Gatewaying),
    ("weight",          'w',  Argument, Opt::Weight),
    ("u-threshold",     'x',  Argument, Opt::UpperThreshold),
    ("l-threshold",     'y',  Argument, Opt::LowerThreshold),
    ("numeric",         'n',  Nothing,  Opt::Numeric),
    ("connection",      'c',  Nothing,  Opt::Connection),
    ("mcast-interface", '\0', Argument, Opt::McastInterface),
    ("syncid",          '\0', Argument, Opt::Syncid),
    ("timeout",         '\0', Nothing,  Opt::Timeout),
    ("daemon",          '\0', Nothing,  Opt::Daemon),
    ("stats",           '\0', Nothing,  Opt::Stats),
    ("rate",            '\0', Nothing,  Opt::Rate),
    ("thresholds",      '\0', Nothing,  Opt::Thresholds),
    ("persistent-conn", '\0', Nothing,  Opt::PersistentConn),
    ("nosort",          '\0', Nothing,  Opt::Nosort),
    ("sort",            '\0', Nothing,  Opt::Sort),
    ("exact",           'X',  Nothing,  Opt::Exact),
    ("ipv6",            '6',  Nothing,  Opt::Ipv6),
    ("ops",             'o',  Nothing,  Opt::Ops),
    ("pe",              '\0', Argument, Opt::Pe),
    ("sched-flags",     'b',  Argument, Opt::SchedFlags),
    ("mcast-group",     '\0', Argument, Opt::McastGroup),
    ("mcast-port",      '\0', Argument, Opt::McastPort),
    ("mcast-ttl",       '\0', Argument, Opt::McastTtl),
    ("sync-maxlen",     '\0', Argument, Opt::SyncMaxlen),
    ("tun-info",        '\0', Nothing,  Opt::TunInfo),
    ("tun-type",        '\0', Argument, Opt::TunType),
    ("tun-port",        '\0', Argument, Opt::TunPort),
    ("tun-nocsum",      '\0', Nothing,  Opt::TunNocsum),
    ("tun-csum",        '\0', Nothing,  Opt::TunCsum),
    ("tun-remcsum",     '\0', Nothing,  Opt::TunRemcsum),
];

/// What is wrong with the word that was read last, in popt's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Unknown,
    NoArgument,
    UnwantedArgument,
}

impl Fault {
    pub const fn message(self) -> &'static str {
        match self {
            Fault::Unknown => "unknown option",
            Fault::NoArgument => "missing argument",
            Fault::UnwantedArgument => "option does not take an argument",
        }
    }
}

/// Reads options one after the other.
#[derive(Debug)]
pub struct Reader<'a> {
    words: &'a [String],
    next: usize,
    /// The rest of a word of short options.
    letters: &'a str,
    /// What is no option.
    rest: Vec<&'a str>,
    options_are_over: bool,
}

impl<'a> Reader<'a> {
    /// Of the words behind the program's name.
    pub fn new(words: &'a [String]) -> Reader<'a> {
        Reader { words, next: 0, letters: "", rest: Vec::new(), options_are_over: false }
    }

    /// The next option and its argument; `None` at the end.
    pub fn next(&mut self) -> Result<Option<(Opt, Option<&'a str>)>, Fault> {
        if !self.letters.is_empty() {
            return self.short().map(Some);
        }
        while let Some(word) = self.word() {
            if self.options_are_over || !word.starts_with('-') || word == "-" {
                self.rest.push(word);
            } else if word == "--" {
                self.options_are_over = true;
            } else if let Some(long) = word.strip_prefix("--") {
                let (name, argument) = long.split_once('=').map_or((long, None), |(name, rest)| (name, Some(rest)));
                let found = TABLE.iter().find(|row| row.0 == name).ok_or(Fault::Unknown)?;
                return self.argument(found.2, argument).map(|argument| Some((found.3, argument)));
            } else {
                self.letters = word.strip_prefix('-').unwrap_or_default();
                return self.short().map(Some);
            }
        }
        Ok(None)
    }

    /// The word that was read last.
    pub fn last_word(&self) -> &'a str {
        self.next.checked_sub(1).and_then(|last| self.words.get(last)).map_or("", String::as_str)
    }

    /// What was no option, in order. Meaningful at the end.
    pub fn rest(&self) -> &[&'a str] {
        &self.rest
    }

    fn word(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.next)?;
        self.next += 1;
        Some(word)
    }

    fn short(&mut self) -> Result<(Opt, Option<&'a str>), Fault> {
        let mut letters = self.letters.chars();
        let letter = letters.next();
        self.letters = letters.as_str();
        let found = TABLE.iter().find(|row| row.1 != '\0' && Some(row.1) == letter).ok_or(Fault::Unknown)?;
        let mut argument = None;
        if found.2 == Nothing {
            if self.letters.starts_with('=') {
                return Err(Fault::UnwantedArgument);
            }
        } else if !self.letters.is_empty() {
            argument = Some(self.letters.strip_prefix('=').unwrap_or(self.letters));
            self.letters = "";
        }
        Ok((found.3, self.argument(found.2, argument)?))
    }

    /// The argument of an option that takes it so, where `attached` stood in the same word.
    fn argument(&mut self, takes: Takes, attached: Option<&'a str>) -> Result<Option<&'a str>, Fault> {
        match (takes, attached) {
            (Nothing, Some(_)) => Err(Fault::UnwantedArgument),
            (Nothing, None) => Ok(None),
            (Argument | Maybe, Some(argument)) => Ok(Some(argument)),
            (Argument, None) => self.word().map(Some).ok_or(Fault::NoArgument),
            (Maybe, None) => {
                let is_argument = self.words.get(self.next).is_some_and(|word| !word.starts_with('-'));
                Ok(if is_argument { self.word() } else { None })
            }
        }
    }
}
