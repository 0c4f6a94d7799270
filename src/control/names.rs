//! Finds out what servers stand behind names of the DNS and in watched files, and notices when that changes.
//!
//! # Theory of operation
//!
//! [`Names`] knows an answer for each [`Origin`] of the running configuration. [`Names::learn`] is asked before a
//! configuration is compiled and looks up what is not known yet, within a bound of time; [`Names::follow`] says which
//! origins run. One task ([`Names::watch`]) asks again when an answer is no longer good: a record after its TTL, a file
//! every second. An answer that differs from the one before makes the daemon compile its configuration anew.
//!
//! A failure never takes a server away: what was known last holds, for each address family by itself, until there is an
//! answer again. That also goes for a name that exists no longer, and a list with a mistake in it.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::config::{Found, MAX_FOUND, Origin, Resolved, ServerAddress, parse_list};
use crate::wire::Addr;

/// Between which bounds a TTL is believed: no flood of questions, and no name that is forgotten about.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// After a failure, and how often files are looked at.
const RETRY: Duration = Duration::from_secs(5);
const FILE_LOOK: Duration = Duration::from_secs(1);
/// How long a start, a reload or an edit waits for answers.
const PATIENCE: Duration = Duration::from_secs(3);
/// Of one question to one server.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// Names that are asked for at a time.
const AT_A_TIME: usize = 16;
/// Hosts of an SRV record that are looked up.
const MAX_TARGETS: usize = 64;
/// Of a list of servers.
const MAX_FILE: u64 = 1 << 20;

/// What is known of all origins.
pub struct Names {
    known: Mutex<Known>,
    /// Tells the daemon that answers have changed.
    changed: mpsc::Sender<()>,
    wake: Notify,
}

#[derive(Default)]
struct Known {
    entries: HashMap<Origin, Entry>,
    resolvers: Vec<SocketAddr>,
}

/// One origin that is followed.
#[derive(Clone, Debug)]
struct Entry {
    answer: Answer,
    due: Instant,
    is_failing: bool,
}

/// What came of looking, and for how long that is good.
#[derive(Clone, Debug, Default)]
struct Answer {
    /// IPv4 and IPv6; `None`: nothing is known.
    found: [Option<Vec<Found>>; 2],
    ttl: Duration,
    /// Why a part of it could not be found out.
    failure: Option<String>,
    stamp: Option<Stamp>,
    look: Option<Look>,
    hosts: Hosts,
}

/// What a look at a file saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// No file.
    Nothing,
    Seen(Stamp),
    /// Another one than at the look before: it may be half-written, and is not read.
    Unsettled(Stamp),
}

/// The addresses of an SRV record's hosts, IPv4 and IPv6.
type Hosts = HashMap<String, [Vec<Addr>; 2]>;

/// A file that has this has not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    modified: (i64, i64),
    size: u64,
}

/// Answers for one configuration, on their way to be followed.
#[derive(Clone, Default)]
pub struct Learned {
    entries: HashMap<Origin, Entry>,
    resolvers: Vec<SocketAddr>,
}

impl Learned {
    pub fn resolved(&self) -> Resolved {
        self.entries.iter().map(|(origin, entry)| (origin.clone(), entry.answer.all())).collect()
    }
}

impl Names {
    /// Also the way on which changes are told.
    pub fn new() -> (Arc<Names>, mpsc::Receiver<()>) {
        let (changed, told) = mpsc::channel(1);
        (Arc::new(Names { known: Mutex::default(), changed, wake: Notify::new() }), told)
    }

    /// What is known of `origins`; looks up those that are not followed yet. What is not found out in time is told in the
    /// log, and found out later if the configuration runs.
    pub async fn learn(&self, origins: BTreeSet<Origin>, resolvers: &[SocketAddr]) -> Learned {
        let known: Vec<(Origin, Option<Entry>)> = {
            let known = self.known.lock();
            let entry = |origin: &Origin| known.entries.get(origin).cloned();
            origins.into_iter().map(|origin| (origin.clone(), entry(&origin))).collect()
        };
        let mut learned = Learned { entries: HashMap::new(), resolvers: resolvers.to_vec() };
        let (known, new): (Vec<_>, Vec<_>) = known.into_iter().partition(|(_, entry)| entry.is_some());
        learned.entries.extend(known.into_iter().filter_map(|(origin, entry)| Some((origin, entry?))));
        if new.is_empty() {
            return learned;
        }
        let new: Vec<Origin> = new.into_iter().map(|(origin, _)| origin).collect();
        let resolver = resolver(resolvers);
        let patience = Instant::now() + PATIENCE;
        for some in new.chunks(AT_A_TIME) {
            let look = async |origin: &Origin| {
                let left = patience.saturating_duration_since(Instant::now());
                let late = || Answer { failure: Some("no answer in time".to_owned()), ..Answer::default() };
                let nothing = Answer::default();
                timeout(left, look(origin, resolver.as_ref(), &nothing)).await.unwrap_or_else(|_| late())
            };
            for (origin, answer) in some.iter().zip(join_all(some.iter().map(look)).await) {
                let mut entry = Entry { answer: Answer::default(), due: Instant::now(), is_failing: false };
                entry.take(origin, answer);
                if entry.answer.all().is_empty() {
                    tracing::warn!("{origin} has no server yet: its services start without");
                }
                learned.entries.insert(origin.clone(), entry);
            }
        }
        learned
    }

    /// What is known of all that is followed.
    pub fn resolved(&self) -> Resolved {
        let known = self.known.lock();
        known.entries.iter().map(|(origin, entry)| (origin.clone(), entry.answer.all())).collect()
    }

    /// Follows these and no others from now on.
    pub fn follow(&self, learned: Learned) {
        let Learned { entries, resolvers } = learned;
        *self.known.lock() = Known { entries, resolvers };
        self.wake.notify_one();
    }

    /// Runs beside the daemon: asks again whatever is due.
    pub async fn watch(self: Arc<Names>) -> &'static str {
        loop {
            let (due, next) = self.due(Instant::now());
            if due.is_empty() {
                // Nothing to do for as long as nothing is due, or for ever.
                let _ = timeout(next.unwrap_or(TTL.1), self.wake.notified()).await;
                continue;
            }
            let resolvers = self.known.lock().resolvers.clone();
            let resolver = if due.iter().all(|(origin, _)| matches!(origin, Origin::File { .. })) {
                None
            } else {
                resolver(&resolvers)
            };
            let answers = join_all(due.iter().map(|(origin, before)| look(origin, resolver.as_ref(), before))).await;
            let changed = {
                let mut known = self.known.lock();
                due.iter()
                    .zip(answers)
                    .filter(|((origin, _), answer)| {
                        let entry = known.entries.get_mut(origin);
                        entry.is_some_and(|entry| entry.take(origin, answer.clone()))
                    })
                    .count()
            };
            if changed > 0 {
                // One that waits already is as good.
                let _ = self.changed.try_send(());
            }
        }
    }

    /// A few that are due, with what is known of them, or how long until one is.
    fn due(&self, now: Instant) -> (Vec<(Origin, Answer)>, Option<Duration>) {
        let known = self.known.lock();
        let due = known.entries.iter().filter(|(_, entry)| entry.due <= now).take(AT_A_TIME);
        let due = due.map(|(origin, entry)| (origin.clone(), entry.answer.clone())).collect();
        let next = known.entries.values().map(|entry| entry.due.saturating_duration_since(now)).min();
        (due, next)
    }
}

impl Entry {
    /// Takes an answer; tells whether it is another than before. A failure is told once, and so is its end.
    fn take(&mut self, origin: &Origin, mut answer: Answer) -> bool {
        if let Some(look @ Look::Unsettled(_)) = answer.look {
            self.answer.look = Some(look);
            self.due = Instant::now() + FILE_LOOK;
            return false;
        }
        let before = self.answer.all();
        match &answer.failure {
            Some(failure) if !self.is_failing => {
                let holds = if before.is_empty() { "" } else { "; what was known last holds" };
                tracing::warn!("{origin}: {failure}{holds}");
            }
            None if self.is_failing => tracing::info!("{origin}: there is an answer again"),
            _ => {}
        }
        self.is_failing = answer.failure.is_some();
        self.due = Instant::now() + if self.is_failing { RETRY.min(answer.ttl.max(FILE_LOOK)) } else { answer.ttl };
        for (new, old) in answer.found.iter_mut().zip(&mut self.answer.found) {
            if new.is_none() {
                *new = old.take();
            }
        }
        if answer.hosts.is_empty() {
            answer.hosts = std::mem::take(&mut self.answer.hosts);
        }
        self.answer = answer;
        self.answer.all() != before
    }
}

impl Answer {
    /// Of both families, bounded, and in an order that does not depend on who answered.
    fn all(&self) -> Vec<Found> {
        let mut all: Vec<Found> = self.found.iter().flatten().flatten().cloned().collect();
        all.truncate(MAX_FOUND);
        all
    }

    fn failed(failure: String) -> Answer {
        Answer { failure: Some(failure), ttl: RETRY, ..Answer::default() }
    }
}

/// Looks an origin up of which `before` is known. A file with the same stamp is not read again.
async fn look(origin: &Origin, resolver: Option<&TokioResolver>, before: &Answer) -> Answer {
    let no_resolver = || Answer::failed("there is no name server: /etc/resolv.conf cannot be used".to_owned());
    match origin {
        Origin::File { path } => read_list(path, before),
        Origin::Host { name, port } => match resolver {
            Some(resolver) => look_up_host(resolver, name, *port).await,
            None => no_resolver(),
        },
        Origin::Srv { name } => match resolver {
            Some(resolver) => look_up_srv(resolver, name, &before.hosts).await,
            None => no_resolver(),
        },
    }
}

async fn look_up_host(resolver: &TokioResolver, name: &str, port: Option<u16>) -> Answer {
    let families = [RecordType::A, RecordType::AAAA].map(|kind| addresses(resolver, name, kind));
    let answers = join_all(families).await;
    let mut answer = Answer { ttl: TTL.1, ..Answer::default() };
    let mut failures = Vec::new();
    for (slot, family) in answer.found.iter_mut().zip(answers) {
        match family {
            Ok((addresses, ttl)) => {
                let found = |address| Found { address: ServerAddress { address, port }, weight: None, name: None };
                *slot = Some(addresses.into_iter().map(found).collect());
                answer.ttl = answer.ttl.min(ttl);
            }
            Err(failure) => failures.push(failure),
        }
    }
    // A name without any address is as good as none: it may be coming back.
    if answer.found.iter().flatten().all(Vec::is_empty) {
        let failure = failures.pop().unwrap_or_else(|| format!("{name} has no address"));
        return Answer::failed(failure);
    }
    answer.failure = failures.pop();
    answer
}

/// Of the hosts with the lowest priority (RFC 2782: the others are for when these do not answer).
async fn look_up_srv(resolver: &TokioResolver, name: &str, known: &Hosts) -> Answer {
    let lookup = match timeout(PATIENCE, resolver.lookup(name, RecordType::SRV)).await {
        Ok(Ok(lookup)) => lookup,
        Ok(Err(error)) => return Answer::failed(error.to_string()),
        Err(_) => return Answer::failed("no answer in time".to_owned()),
    };
    let ttl = left_of(lookup.valid_until());
    let records = || {
        lookup.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv),
            _ => None,
        })
    };
    let Some(first) = records().map(|srv| srv.priority).min() else {
        return Answer::failed(format!("{name} has no SRV record"));
    };
    let targets: Vec<_> = records().filter(|srv| srv.priority == first).take(MAX_TARGETS).collect();
    let targets = targets.into_iter().map(async |srv| Target {
        host: srv.target.to_utf8(),
        port: srv.port,
        weight: srv.weight,
        answer: look_up_host(resolver, &srv.target.to_utf8(), Some(srv.port)).await,
    });
    of_targets(join_all(targets).await, known, ttl)
}

/// A host that an SRV record names, and what came of looking for its addresses.
struct Target {
    host: String,
    port: u16,
    weight: u16,
    answer: Answer,
}

/// All targets together. One without an answer has the addresses that it had.
fn of_targets(targets: Vec<Target>, known: &Hosts, ttl: Duration) -> Answer {
    let mut all = [Vec::new(), Vec::new()];
    let mut joint = Answer { ttl, ..Answer::default() };
    for Target { host, port, weight, answer } in targets {
        joint.ttl = joint.ttl.min(answer.ttl);
        joint.failure = joint.failure.or(answer.failure.map(|failure| format!("{host}: {failure}")));
        // Weight 0 is one that should get little (RFC 2782), not nothing.
        let weight = Some(u32::from(weight.max(1)));
        let mut addresses = known.get(&host).cloned().unwrap_or_default();
        for ((addresses, family), all) in addresses.iter_mut().zip(answer.found).zip(&mut all) {
            if let Some(family) = family {
                *addresses = family.into_iter().map(|found| found.address.address).collect();
            }
            let found = |&address| Found { address: ServerAddress { address, port: Some(port) }, weight, name: None };
            all.extend(addresses.iter().map(found));
        }
        joint.hosts.insert(host, addresses);
    }
    if let (Some(failure), true) = (&joint.failure, all.iter().all(Vec::is_empty)) {
        return Answer::failed(failure.clone());
    }
    joint.found = all.map(|mut all| {
        all.sort();
        Some(all)
    });
    joint
}

/// The addresses of one family, and for how long they are good. None at all is an answer, too.
async fn addresses(resolver: &TokioResolver, name: &str, kind: RecordType) -> Result<(Vec<Addr>, Duration), String> {
    let lookup = match timeout(PATIENCE, resolver.lookup(name, kind)).await {
        Ok(Ok(lookup)) => lookup,
        Ok(Err(error)) if error.is_no_records_found() && !error.is_nx_domain() => return Ok((Vec::new(), TTL.1)),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("no answer in time".to_owned()),
    };
    let address = |data: &RData| match data {
        RData::A(a) => Some(Addr::from(IpAddr::from(a.0))),
        RData::AAAA(aaaa) => Some(Addr::from(IpAddr::from(aaaa.0))),
        _ => None,
    };
    let mut addresses: Vec<Addr> = lookup.answers().iter().filter_map(|record| address(&record.data)).collect();
    addresses.sort();
    addresses.dedup();
    Ok((addresses, left_of(lookup.valid_until())))
}

fn left_of(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).clamp(TTL.0, TTL.1)
}

/// `None`, after saying why, when there is no way to ask.
fn resolver(servers: &[SocketAddr]) -> Option<TokioResolver> {
    let builder = if servers.is_empty() {
        TokioResolver::builder_tokio()
    } else {
        let name_server = |server: &SocketAddr| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            NameServerConfig::new(server.ip(), true, connections.into())
        };
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(name_server).collect());
        Ok(TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()))
    };
    let built = builder.and_then(|mut builder| {
        let options = builder.options_mut();
        // What is asked again is to be asked of a server, not of ourselves.
        options.cache_size = 0;
        options.timeout = ANSWER_TIME;
        options.attempts = 1;
        builder.build()
    });
    built.inspect_err(|error| tracing::warn!("names cannot be looked up: {error}")).ok()
}

fn read_list(path: &Path, before: &Answer) -> Answer {
    let mut look = Look::Nothing;
    let mut read = || -> Result<Answer, String> {
        let failed = |error: std::io::Error| format!("the file cannot be read: {error}");
        // A pipe would have us wait for a writer.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        if !about.is_file() {
            return Err("this is no file".to_owned());
        }
        let new = stamp_of(&about);
        look = Look::Seen(new);
        if before.stamp == Some(new) {
            return Ok(Answer { stamp: before.stamp, ttl: FILE_LOOK, ..Answer::default() });
        }
        // The first look of all is for a start, a reload or an edit, which cannot wait.
        if before.look.is_some_and(|look| !matches!(look, Look::Seen(old) | Look::Unsettled(old) if old == new)) {
            look = Look::Unsettled(new);
            return Ok(Answer::default());
        }
        let mut text = String::new();
        file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_FILE {
            return Err(format!("the file is larger than {} MiB", MAX_FILE >> 20));
        }
        let (v4, v6) = parse_list(&text)?.into_iter().partition(|found| found.address.address.is_v4());
        Ok(Answer { found: [Some(v4), Some(v6)], ttl: FILE_LOOK, stamp: Some(new), ..Answer::default() })
    };
    let answer = read().unwrap_or_else(|failure| Answer { ttl: FILE_LOOK, ..Answer::failed(failure) });
    Answer { look: Some(look), ..answer }
}

fn stamp_of(about: &fs::Metadata) -> Stamp {
    Stamp { inode: (about.dev(), about.ino()), modified: (about.mtime(), about.mtime_nsec()), size: about.size() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(path: &Path) -> Origin {
        Origin::File { path: path.to_owned() }
    }

    fn addresses_of(answer: &Answer) -> Vec<String> {
        answer.all().iter().map(|found| found.address.to_string()).collect()
    }

    #[test]
    fn a_list_is_read_when_it_changes_and_holds_while_it_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        let mut entry = Entry { answer: Answer::default(), due: Instant::now(), is_failing: false };
        let mut look = |text: Option<&str>| {
            match text {
                Some(text) => fs::write(&path, text).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            // A file that is another one now is looked at twice.
            let mut changed = false;
            for _ in 0..2 {
                let answer = read_list(&path, &entry.answer);
                changed |= entry.take(&origin(&path), answer);
            }
            (changed, addresses_of(&entry.answer), entry.is_failing)
        };
        let known = |addresses: &[&str]| addresses.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            look(Some("10.0.0.1\n[fd20::1]:80\n10.0.0.2\n")),
            (true, known(&["10.0.0.1", "10.0.0.2", "[fd20::1]:80"]), false)
        );
        assert_eq!(look(Some("10.0.0.1\nnonsense\n")), (false, known(&["10.0.0.1", "10.0.0.2", "[fd20::1]:80"]), true));
        assert_eq!(look(None), (false, known(&["10.0.0.1", "10.0.0.2", "[fd20::1]:80"]), true));
        assert_eq!(look(Some("10.0.0.3\n")), (true, known(&["10.0.0.3"]), false));
        assert_eq!(look(Some("# none\n")), (true, known(&[]), false), "an empty list is meant");
    }

    #[test]
    fn a_list_is_not_believed_while_it_is_being_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        let mut entry = Entry { answer: Answer::default(), due: Instant::now(), is_failing: false };
        let mut look = |text: &str| {
            fs::write(&path, text).unwrap();
            let answer = read_list(&path, &entry.answer);
            entry.take(&origin(&path), answer);
            (addresses_of(&entry.answer).len(), entry.is_failing)
        };
        assert_eq!(look("10.0.0.1\n10.0.0.2\n"), (2, false), "a start does not wait");
        assert_eq!(look(""), (2, false), "truncated");
        assert_eq!(look("10.0.0.1\n10.0"), (2, false), "a part of it");
        assert_eq!(look("10.0.0.1\n10.0.0.2\n10.0.0.3\n"), (2, false), "all of it, for the first time");
        let answer = read_list(&path, &entry.answer);
        assert!(entry.take(&origin(&path), answer));
        assert_eq!(addresses_of(&entry.answer).len(), 3);
    }

    #[test]
    fn one_family_without_an_answer_keeps_its_addresses() {
        let found = |text: &str| Found {
            address: ServerAddress { address: Addr::from(text.parse::<IpAddr>().unwrap()), port: None },
            weight: None,
            name: None,
        };
        let name = Origin::Host { name: "a".to_owned(), port: None };
        let mut entry = Entry { answer: Answer::default(), due: Instant::now(), is_failing: false };
        let both = Answer { found: [Some(vec![found("10.0.0.1")]), Some(vec![found("fd20::1")])], ..Answer::default() };
        assert!(entry.take(&name, both));
        let half = Answer { found: [None, Some(vec![])], failure: Some("late".to_owned()), ..Answer::default() };
        assert!(entry.take(&name, half));
        assert_eq!(addresses_of(&entry.answer), ["10.0.0.1"]);
        assert!(!entry.take(&name, Answer::failed("gone".to_owned())));
        assert_eq!(addresses_of(&entry.answer), ["10.0.0.1"]);
        assert!(entry.due <= Instant::now() + RETRY);
    }

    #[test]
    fn a_target_of_a_record_without_an_answer_keeps_its_addresses() {
        let address = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let good = |text: &str| {
            let found =
                Found { address: ServerAddress { address: address(text), port: Some(80) }, weight: None, name: None };
            Answer { found: [Some(vec![found]), Some(vec![])], ttl: TTL.1, ..Answer::default() }
        };
        let target = |host: &str, answer| Target { host: host.to_owned(), port: 80, weight: 0, answer };
        let failed = || Answer::failed("no answer in time".to_owned());
        let name = Origin::Srv { name: "s".to_owned() };
        let mut entry = Entry { answer: Answer::default(), due: Instant::now(), is_failing: false };
        let mut take = |targets| {
            let answer = of_targets(targets, &entry.answer.hosts, TTL.1);
            entry.take(&name, answer);
            (addresses_of(&entry.answer), entry.is_failing)
        };
        let known = |texts: &[&str]| texts.iter().map(|text| format!("{text}:80")).collect::<Vec<_>>();
        assert_eq!(take(vec![target("a", failed()), target("b", failed())]), (known(&[]), true));
        assert_eq!(take(vec![target("a", good("10.0.0.1")), target("b", failed())]), (known(&["10.0.0.1"]), true));
        assert_eq!(
            take(vec![target("a", good("10.0.0.1")), target("b", good("10.0.0.2"))]),
            (known(&["10.0.0.1", "10.0.0.2"]), false)
        );
        assert_eq!(
            take(vec![target("a", failed()), target("b", good("10.0.0.3"))]),
            (known(&["10.0.0.1", "10.0.0.3"]), true)
        );
        assert_eq!(take(vec![target("a", failed()), target("b", failed())]), (known(&["10.0.0.1", "10.0.0.3"]), true));
        assert_eq!(take(vec![target("b", failed())]), (known(&["10.0.0.3"]), true), "the record has it no more");
    }

    #[tokio::test]
    async fn what_is_followed_is_watched_and_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        fs::write(&path, "10.0.0.1\n").unwrap();
        let (names, mut told) = Names::new();
        let learned = names.learn(BTreeSet::from([origin(&path)]), &[]).await;
        assert_eq!(learned.resolved()[&origin(&path)].len(), 1);
        names.follow(learned);
        let watch = tokio::spawn(names.clone().watch());
        fs::write(&path, "10.0.0.1\n10.0.0.2\n").unwrap();
        timeout(Duration::from_secs(10), told.recv()).await.expect("a change is told").expect("there is a sender");
        let again = names.learn(BTreeSet::from([origin(&path)]), &[]).await;
        assert_eq!(again.resolved()[&origin(&path)].len(), 2);
        watch.abort();
    }
}
