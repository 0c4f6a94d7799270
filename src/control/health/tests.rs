//! The whole of it but for the network, which is a table of who answers; time is tokio's, paused.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use tokio::io::duplex;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::transport::{Answer, Datagrams, Stream, Target};
use super::*;
use crate::control::config::Config;
use crate::service::ServerState;

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Answers,
    Refuses,
    Silent,
    /// The gateway has no descriptor left.
    NoRoom,
}

#[derive(Default)]
struct Network {
    behaviours: Mutex<HashMap<SocketAddr, Behaviour>>,
    asked: Mutex<Vec<(SocketAddr, Instant)>>,
    open: Mutex<(usize, usize)>,
}

/// Counts how many wait at a time.
struct Waiting<'a>(&'a Network);

impl Waiting<'_> {
    fn new(network: &Network) -> Waiting<'_> {
        let mut open = network.open.lock();
        open.0 += 1;
        open.1 = open.1.max(open.0);
        Waiting(network)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.open.lock().0 -= 1;
    }
}

impl Connect for Network {
    fn stream(&self, to: Target) -> Answer<'_, Box<dyn Stream>> {
        Box::pin(async move {
            self.asked.lock().push((to.address, Instant::now()));
            let _waiting = Waiting::new(self);
            let behaviour = self.behaviours.lock().get(&to.address).copied();
            match behaviour.unwrap_or(Behaviour::Answers) {
                Behaviour::Answers => Ok(Box::new(duplex(16).0) as Box<dyn Stream>),
                Behaviour::Refuses => Err(io::ErrorKind::ConnectionRefused.into()),
                Behaviour::Silent => std::future::pending().await,
                Behaviour::NoRoom => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            }
        })
    }

    fn datagrams(&self, _: Target) -> Answer<'_, Box<dyn Datagrams>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
}

/// A gateway whose checks run.
struct World {
    network: Arc<Network>,
    health: Arc<Health>,
    gateway: Arc<Gateway>,
    task: JoinHandle<&'static str>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl World {
    fn new(text: &str) -> World {
        World::with_room(text, 1000)
    }

    fn with_room(text: &str, room: usize) -> World {
        let gateway = Arc::new(Gateway::new(Arc::new(Snapshot::default()), 1, 1024, [0, 0]));
        let network = Arc::new(Network::default());
        let health = Arc::new(Health::by(gateway.clone(), network.clone(), room));
        let task = tokio::spawn(health.clone().run());
        let world = World { network, health, gateway, task };
        world.reload(text);
        world
    }

    fn reload(&self, text: &str) {
        let (prepared, snapshot) = self.prepare(text);
        self.health.foresee(&prepared, &snapshot);
        self.gateway.swap(snapshot.clone());
        self.health.configure(prepared, &snapshot);
    }

    fn prepare(&self, text: &str) -> (Prepared, Arc<Snapshot>) {
        let config = Config::parse(Path::new("x.toml"), text).unwrap_or_else(|errors| panic!("{errors}"));
        let compiled = config.compiled().unwrap_or_else(|errors| panic!("{errors}"));
        let snapshot = Snapshot::build(compiled.snapshot, Some(&self.gateway.snapshot())).unwrap();
        (Prepared::new(compiled.health).unwrap(), Arc::new(snapshot))
    }

    fn state(&self, service: &str, server: &str) -> Arc<ServerState> {
        let snapshot = self.gateway.snapshot();
        let service = snapshot.live.iter().find(|found| found.spec.name == service).expect("a service");
        service.servers.iter().find(|found| found.name == server).expect("a server").state.clone()
    }

    fn is_up(&self, service: &str, server: &str) -> bool {
        self.state(service, server).is_up()
    }

    fn has_quorum(&self, service: &str) -> bool {
        let snapshot = self.gateway.snapshot();
        snapshot.live.iter().find(|found| found.spec.name == service).expect("a service").state.has_quorum()
    }

    fn set(&self, server: &str, behaviour: Behaviour) {
        self.network.behaviours.lock().insert(server.parse().expect("an address and a port"), behaviour);
    }

    /// When this one was asked.
    fn times(&self, server: &str) -> Vec<Instant> {
        let server: SocketAddr = server.parse().expect("an address and a port");
        self.network.asked.lock().iter().filter(|(to, _)| *to == server).map(|(_, at)| *at).collect()
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const FAST: &str = r#"check = { type = "tcp", interval = "200ms", timeout = "200ms", rise = 2, fall = 2 }"#;

/// A service with servers 10.0.0.1:80, 10.0.0.2:80 and so on; `keys` are lines of it.
fn service(name: &str, port: u16, keys: &str, servers: usize) -> String {
    let mut text = format!("[[service]]\nname = \"{name}\"\nlisten = \"203.0.113.10:{port}\"\n{keys}\nserver = [");
    for last in 1..=servers {
        text.push_str(&format!("{{ address = \"10.0.0.{last}:80\" }}, "));
    }
    text + "]\n"
}

#[tokio::test(start_paused = true)]
async fn a_server_falls_and_rises_alone() {
    let world = World::new(&service("web", 80, FAST, 3));
    let mut told = world.health.watch();
    sleep(ms(1000)).await;
    assert!((1..=3).all(|last| world.is_up("web", &format!("10.0.0.{last}:80"))));
    world.set("10.0.0.2:80", Behaviour::Refuses);
    sleep(ms(150)).await;
    assert!(world.is_up("web", "10.0.0.2:80"), "one bad answer is not two");
    sleep(ms(300)).await;
    let seen: Vec<bool> = (1..=3).map(|last| world.is_up("web", &format!("10.0.0.{last}:80"))).collect();
    assert_eq!(seen, [true, false, true]);
    let event = told.try_recv().unwrap();
    let expected = (api::ServerChange::Down, Some("10.0.0.2:80"), "connection refused (tcp check)");
    assert_eq!((event.change, event.server.as_deref(), event.reason.as_str()), expected);
    world.set("10.0.0.2:80", Behaviour::Answers);
    sleep(ms(450)).await;
    assert!(world.is_up("web", "10.0.0.2:80"));
    assert_eq!(told.try_recv().unwrap().change, api::ServerChange::Up);
    assert!(told.try_recv().is_err(), "nothing else changed");
}

// The bar of the design: fall x interval + timeout, wherever between two probes the server dies, and however.
#[tokio::test(start_paused = true)]
async fn a_dead_server_is_out_in_time() {
    for (jitter, how) in [("0%", Behaviour::Silent), ("50%", Behaviour::Silent), ("0%", Behaviour::Refuses)] {
        let check = FAST.replace("fall = 2", &format!("fall = 2, jitter = \"{jitter}\""));
        for offset in (0..200).step_by(13) {
            let world = World::new(&service("web", 80, &check, 1));
            sleep(ms(1000 + offset)).await;
            assert!(world.is_up("web", "10.0.0.1:80"));
            world.set("10.0.0.1:80", how);
            sleep(ms(601)).await;
            assert!(!world.is_up("web", "10.0.0.1:80"), "{jitter} {how:?} after {offset} ms");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn probes_start_at_random_and_then_regularly() {
    let world = World::new(&service("web", 80, r#"check = { type = "tcp", interval = "1s" }"#, 50));
    sleep(ms(10_000)).await;
    let first: Vec<Duration> = {
        let asked = world.network.asked.lock();
        let start = asked.iter().map(|(_, at)| *at).min().unwrap();
        (1..=50)
            .map(|last| format!("10.0.0.{last}:80").parse().unwrap())
            .map(|server: SocketAddr| *asked.iter().find(|(to, _)| *to == server).map(|(_, at)| at).unwrap() - start)
            .collect()
    };
    assert!(first.iter().all(|time| *time < ms(1000)));
    assert!(first.iter().collect::<HashSet<_>>().len() > 25, "they start together: {first:?}");
    let times = world.times("10.0.0.7:80");
    assert!(times.windows(2).all(|pair| (ms(999)..=ms(1002)).contains(&(pair[1] - pair[0]))), "{times:?}");

    let jitter = World::new(&service("web", 80, r#"check = { type = "tcp", interval = "1s", jitter = "400ms" }"#, 1));
    sleep(ms(30_000)).await;
    let gaps: Vec<Duration> = jitter.times("10.0.0.1:80").windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (ms(599)..=ms(1002)).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().max().unwrap().saturating_sub(*gaps.iter().min().unwrap()) > ms(100), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn services_that_ask_the_same_share_one_probe() {
    let other = FAST.replace("rise = 2", "rise = 3");
    let text = service("a", 80, FAST, 2) + &service("b", 81, FAST, 2) + &service("c", 82, &other, 1);
    let world = World::new(&text);
    assert_eq!(world.health.table.lock().count().0, 3, "two of a and b, one of c");
    sleep(ms(1000)).await;
    let asked = world.times("10.0.0.2:80").len();
    assert!((4..=6).contains(&asked), "{asked} times");
    world.set("10.0.0.2:80", Behaviour::Refuses);
    sleep(ms(500)).await;
    assert!(!world.is_up("a", "10.0.0.2:80") && !world.is_up("b", "10.0.0.2:80"));
    // Who comes later knows what the probe knows.
    world.reload(&(text.clone() + &service("d", 83, FAST, 2)));
    assert!(!world.is_up("d", "10.0.0.2:80") && world.is_up("d", "10.0.0.1:80"));
    assert_eq!(world.health.table.lock().count().0, 3);
    // Who goes takes nothing away from the others.
    world.reload(&service("b", 81, FAST, 2));
    assert_eq!(world.health.table.lock().count().0, 2);
    world.set("10.0.0.2:80", Behaviour::Answers);
    sleep(ms(500)).await;
    assert!(world.is_up("b", "10.0.0.2:80"));
}

#[tokio::test(start_paused = true)]
async fn a_reload_leaves_alone_what_stays() {
    let text = service("web", 80, FAST, 2);
    let world = World::new(&text);
    world.set("10.0.0.2:80", Behaviour::Silent);
    sleep(ms(1000)).await;
    let before = world.times("10.0.0.1:80").len();
    for round in 0..40 {
        world.reload(&(text.clone() + &service(&format!("s{round}"), 81, FAST, 3)));
        sleep(ms(50)).await;
        assert!(!world.is_up("web", "10.0.0.2:80") && world.is_up("web", "10.0.0.1:80"));
    }
    let asked = world.times("10.0.0.1:80").len() - before;
    assert!((9..=11).contains(&asked), "{asked} times in ten intervals");
    let gaps: Vec<Duration> = world.times("10.0.0.1:80").windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| *gap >= ms(199)), "{gaps:?}");
    // Another check says nothing before it has asked.
    world.reload(&text.replace("fall = 2", "fall = 5"));
    assert!(!world.is_up("web", "10.0.0.2:80"));
    // Nobody says that it is down.
    world.reload(&text.replace(FAST, ""));
    assert!(world.is_up("web", "10.0.0.2:80"));
    assert_eq!(world.health.table.lock().count(), (0, 0));
    let asked = world.network.asked.lock().len();
    sleep(ms(1000)).await;
    assert_eq!(world.network.asked.lock().len(), asked, "nobody is asked any more");
}

// A reload that the host refuses gets as far as this.
#[tokio::test(start_paused = true)]
async fn what_was_only_foreseen_leaves_no_trace() {
    let text = service("web", 80, FAST, 2);
    let world = World::new(&text);
    world.set("10.0.0.2:80", Behaviour::Refuses);
    sleep(ms(1000)).await;
    let mut told = world.health.watch();
    let down = FAST.replace("tcp\"", "tcp\", initial = \"down\"");
    let commanded = format!("{down}\nquorum = 9\nquorum_down = \"/bin/false\"");
    let refused = service("web", 80, &commanded, 1) + &service("a", 81, &commanded, 1) + &service("b", 82, FAST, 2);
    let (old, (prepared, tried)) = (world.gateway.snapshot(), world.prepare(&refused));
    world.health.foresee(&prepared, &tried);
    world.gateway.swap(tried.clone());
    let seen = |service, server| (world.has_quorum(service), world.is_up(service, server));
    assert_eq!(seen("a", "10.0.0.1:80"), (false, false), "as its check says");
    assert_eq!(seen("b", "10.0.0.2:80"), (true, false), "what it shares a probe with is known to be down");
    assert_eq!(seen("web", "10.0.0.1:80"), (true, true));
    let back = Snapshot::build_back(old.spec.clone(), &old, &tried).unwrap();
    world.gateway.swap(Arc::new(back));
    sleep(ms(1000)).await;
    assert!(world.is_up("web", "10.0.0.1:80") && !world.is_up("web", "10.0.0.2:80") && world.has_quorum("web"));
    assert!(told.try_recv().is_err() && world.health.jobs.lock().is_empty());
    let gaps: Vec<Duration> = world.times("10.0.0.2:80").windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (ms(199)..=ms(202)).contains(gap)), "{gaps:?}");
}

// The gateway may have given up the right to read it, and who edits something else has nothing to do with it.
#[tokio::test(start_paused = true)]
async fn files_are_read_again_only_at_a_reload() {
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/tls/ca.pem"), &ca).unwrap();
    let keys = format!("check = {{ type = \"https\", ca = {ca:?}, sni = \"server.test\" }}");
    let text = service("web", 80, &keys, 1);
    let world = World::new(&text);
    std::fs::remove_file(&ca).unwrap();
    let health = |text: &str| Config::parse(Path::new("x.toml"), text).unwrap().compiled().unwrap().health;
    assert_eq!(health(&text).files().collect::<Vec<_>>(), [ca.as_path()]);
    assert!(Prepared::new(health(&text)).is_err());
    assert!(world.health.prepare(health(&(text.clone() + &service("a", 81, "", 1)))).is_ok());
    assert!(world.health.prepare(health(&text.replace("server.test", "other.test"))).is_err(), "it is another check");
}

#[tokio::test(start_paused = true)]
async fn servers_that_start_down_wait_for_their_check() {
    let keys = FAST.replace("rise = 2", "rise = 2, initial = \"down\"");
    let world = World::new(&service("web", 80, &keys, 2));
    world.set("10.0.0.2:80", Behaviour::Refuses);
    assert!(!world.is_up("web", "10.0.0.1:80"));
    sleep(ms(700)).await;
    assert!(world.is_up("web", "10.0.0.1:80") && !world.is_up("web", "10.0.0.2:80"));
    // Up is up, also after a reload.
    world.reload(&service("web", 80, &keys, 3));
    assert!(world.is_up("web", "10.0.0.1:80") && !world.is_up("web", "10.0.0.3:80"));
}

#[tokio::test(start_paused = true)]
async fn who_was_down_stays_so_beside_one_that_is_new() {
    let world = World::new(&service("web", 80, FAST, 2));
    world.set("10.0.0.1:80", Behaviour::Refuses);
    sleep(ms(1000)).await;
    let mut told = world.health.watch();
    let other = FAST.replace("rise = 2", "rise = 3");
    world.reload(&(service("new", 81, &other, 2) + &service("web", 80, &other, 2)));
    let seen = ["web", "new"].map(|name| (world.is_up(name, "10.0.0.1:80"), world.is_up(name, "10.0.0.2:80")));
    assert_eq!(seen, [(false, true), (false, true)]);
    sleep(ms(1000)).await;
    while let Ok(event) = told.try_recv() {
        assert_ne!(event.change, api::ServerChange::Up, "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_gateway_lacks_is_not_held_against_a_server() {
    let world = World::new(&service("web", 80, FAST, 1));
    world.set("10.0.0.1:80", Behaviour::NoRoom);
    sleep(ms(5000)).await;
    assert!(world.is_up("web", "10.0.0.1:80"));
    assert!(world.times("10.0.0.1:80").len() > 20, "it goes on trying");
    let snapshot = world.gateway.snapshot();
    let check = world.health.of_server(&snapshot.live[0].servers[0]).unwrap().check.unwrap();
    assert_eq!((check.done, check.failed, check.ok), (0, 0, None));
    let said = check.said.unwrap();
    assert!(said.starts_with("cannot be made: Too many open files"), "{said}");
    world.set("10.0.0.1:80", Behaviour::Answers);
    sleep(ms(500)).await;
    let check = world.health.of_server(&snapshot.live[0].servers[0]).unwrap().check.unwrap();
    assert_eq!(check.ok, Some(true));
}

// Stopped in a debugger, on a machine that swaps, behind a long reload.
#[tokio::test(start_paused = true)]
async fn time_in_which_the_gateway_did_not_run_is_not_held_against_a_server() {
    let world = World::new(&service("web", 80, FAST, 1));
    sleep(ms(1000)).await;
    world.set("10.0.0.1:80", Behaviour::Silent);
    for _ in 0..10 {
        let asked = world.times("10.0.0.1:80").len();
        while world.times("10.0.0.1:80").len() == asked {
            sleep(ms(1)).await;
        }
        tokio::time::advance(ms(500)).await;
    }
    assert!(world.is_up("web", "10.0.0.1:80"));
    sleep(ms(601)).await;
    assert!(!world.is_up("web", "10.0.0.1:80"), "it was given its time");
}

// Not by `Health::run`, which takes them for the log.
#[tokio::test(start_paused = true)]
async fn every_check_that_cannot_be_made_is_told_of_now_and_then() {
    let world = World::new(&(service("web", 80, FAST, 2) + &service("same", 81, FAST, 1)));
    world.task.abort();
    let mut told = Vec::new();
    for round in 0..130 {
        sleep(ms(1000)).await;
        let mut table = world.health.table.lock();
        while let Some(due) = table.take_due(Instant::now(), true) {
            let task = tokio::spawn(async {}).abort_handle();
            let id = (due.id, task.id());
            table.started(due.id, task);
            let outcome = Err(Bad::Ours("no room".to_owned()));
            table.note(id, outcome, Duration::ZERO, Instant::now(), world.gateway.now());
        }
        told.extend(table.complaints.drain(..).map(|complaint| (complaint.server, round)));
    }
    told.sort();
    let expected =
        ["10.0.0.1:80", "10.0.0.2:80"].map(|server| [0, 60, 120].map(|round| (server.to_owned(), round))).concat();
    assert_eq!(told, expected);
}

// By the engine's clock, which is the real one.
#[tokio::test]
async fn who_is_held_down_is_tried_again_if_its_check_cannot_be_made() {
    let keys =
        "passive = { fall = 1, hold = \"1s\" }\ncheck = { type = \"tcp\", interval = \"50ms\", timeout = \"50ms\" }";
    let world = World::new(&service("web", 80, keys, 1));
    let mut told = world.health.watch();
    world.set("10.0.0.1:80", Behaviour::NoRoom);
    sleep(ms(100)).await;
    world.state("web", "10.0.0.1:80").fall_passively(world.gateway.now()).unwrap();
    let began = Instant::now();
    assert_eq!(next_of_a_server(&mut told).await.change, api::ServerChange::Down);
    let event = tokio::time::timeout(ms(5000), next_of_a_server(&mut told)).await.expect("it is tried again");
    assert_eq!(event.change, api::ServerChange::Up);
    assert!(
        event.reason.starts_with("it has been held down long enough, and its check cannot be made: "),
        "{}",
        event.reason
    );
    assert!(began.elapsed() >= ms(900), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn no_more_probes_run_than_there_is_room_for() {
    let world = World::with_room(&service("web", 80, FAST, 40), 4);
    for last in 1..=40 {
        world.set(&format!("10.0.0.{last}:80"), Behaviour::Silent);
    }
    sleep(ms(10_000)).await;
    assert_eq!(world.network.open.lock().1, 4);
    let times: Vec<usize> = (1..=40).map(|last| world.times(&format!("10.0.0.{last}:80")).len()).collect();
    assert!(times.iter().all(|times| (4..=6).contains(times)), "each has its turn: {times:?}");
    assert!((1..=40).all(|last| !world.is_up("web", &format!("10.0.0.{last}:80"))));
}

// Programs live in real time.
#[tokio::test]
async fn no_more_programs_run_than_may_and_others_do_not_wait_for_them() {
    let program = r#"check = { type = "exec", command = "sleep 1", interval = "100ms", timeout = "20s" }"#;
    let world = World::new(&(service("exec", 80, program, 80) + &service("web", 81, FAST, 1)));
    let (mut most, mut last) = (0, 0);
    for _ in 0..100 {
        sleep(ms(20)).await;
        last = world.health.table.lock().count().1;
        most = most.max(last);
    }
    // The one that is no program may be among them.
    assert!((MAX_PROGRAMS..=MAX_PROGRAMS + 1).contains(&most), "{most} at a time, {last} at last");
    let asked = world.times("10.0.0.1:80").len();
    assert!(asked >= 4, "{asked} times");
}

#[tokio::test(start_paused = true)]
async fn single_servers_have_checks_of_their_own() {
    let servers = "server = [{ address = \"10.0.0.1:80\" }, { address = \"10.0.0.2:80\", check = \"off\" }, \
                   { address = \"10.0.0.3:80\", check = { port = 81 } }]\n";
    let text = service("web", 80, FAST, 0).replace("server = []\n", servers);
    let world = World::new(&text);
    for server in ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:81"] {
        world.set(server, Behaviour::Refuses);
    }
    sleep(ms(1000)).await;
    let seen: Vec<bool> = (1..=3).map(|last| world.is_up("web", &format!("10.0.0.{last}:80"))).collect();
    assert_eq!(seen, [false, true, false]);
    assert!(world.times("10.0.0.2:80").is_empty() && world.times("10.0.0.3:80").is_empty());
}

#[tokio::test(start_paused = true)]
async fn quorum_with_hysteresis_and_its_events() {
    let keys = format!("quorum = 3\nhysteresis = 1\n{FAST}");
    let world = World::new(&service("web", 80, &keys, 4));
    let mut told = world.health.watch();
    let mut seen = Vec::new();
    for (last, behaviour) in [
        (1, Behaviour::Refuses),
        (2, Behaviour::Refuses),
        (3, Behaviour::Refuses),
        (3, Behaviour::Answers),
        (2, Behaviour::Answers),
        (1, Behaviour::Answers),
    ] {
        world.set(&format!("10.0.0.{last}:80"), behaviour);
        sleep(ms(700)).await;
        seen.push(world.has_quorum("web"));
    }
    // Lost below 2, gained at 4.
    assert_eq!(seen, [true, true, false, false, false, true]);
    let mut quorums = Vec::new();
    while let Ok(event) = told.try_recv() {
        if event.server.is_none() {
            quorums.push((event.change, event.reason.clone()));
        }
    }
    let expected = [
        (api::ServerChange::QuorumLost, "weight 1, quorum 3".to_owned()),
        (api::ServerChange::QuorumGained, "weight 4, quorum 3".to_owned()),
    ];
    assert_eq!(quorums, expected);
}

#[tokio::test(start_paused = true)]
async fn without_checks_a_quorum_counts_what_is_configured() {
    let world = World::new(&service("web", 80, "quorum = 3", 2));
    assert!(!world.has_quorum("web"));
    world.reload(&service("web", 80, "quorum = 2", 2));
    assert!(world.has_quorum("web"));
    world.state("web", "10.0.0.1:80").set_draining(true);
    sleep(ms(1100)).await;
    assert!(!world.has_quorum("web"), "one that is drained does not count");
}

// By the engine's clock, which is the real one.
#[tokio::test]
async fn clients_failures_hold_a_server_down_for_their_time() {
    let keys = r#"passive = { fall = 1, hold = "1s" }"#;
    let check = r#"check = { type = "tcp", interval = "50ms", timeout = "50ms", rise = 3, fall = 100 }"#;
    let world = World::new(&(service("web", 80, keys, 1) + &service("checked", 81, &format!("{keys}\n{check}"), 1)));
    let mut told = world.health.watch();
    let began = Instant::now();
    let (web, checked) = (world.state("web", "10.0.0.1:80"), world.state("checked", "10.0.0.1:80"));
    assert!(!web.is_checked() && checked.is_checked());
    for state in [&web, &checked] {
        assert!(state.fall_passively(world.gateway.now()).is_some());
    }
    for _ in 0..2 {
        let event = next_of_a_server(&mut told).await;
        assert_eq!((event.change, event.reason.as_str()), (api::ServerChange::Down, "clients' connections to it fail"));
    }
    assert!(began.elapsed() < ms(700), "looked for ten times a second");
    // Its check finds nothing wrong with it, and does not bring it up before its time.
    let event = next_of_a_server(&mut told).await;
    assert_eq!((event.service.as_str(), event.change), ("web", api::ServerChange::Up));
    assert!(began.elapsed() >= ms(1000) && web.is_up());
    assert!(!checked.is_up(), "three good answers first");
    let event = next_of_a_server(&mut told).await;
    assert_eq!((event.service.as_str(), event.change), ("checked", api::ServerChange::Up));
    assert!(began.elapsed() >= ms(1090), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_check_that_agrees_with_clients_is_told_too() {
    let keys = r#"passive = { fall = 1, hold = "60s" }"#;
    let check = r#"check = { type = "tcp", interval = "50ms", timeout = "50ms", fall = 2 }"#;
    let world = World::new(&service("web", 80, &format!("{keys}\n{check}"), 1));
    let mut told = world.health.watch();
    let web = world.state("web", "10.0.0.1:80");
    assert!(web.fall_passively(world.gateway.now()).is_some() && web.is_doubted());
    let event = next_of_a_server(&mut told).await;
    assert_eq!(event.reason.as_str(), "clients' connections to it fail");
    assert!(web.is_doubted());
    world.set("10.0.0.1:80", Behaviour::Refuses);
    let event = timeout(ms(5000), next_of_a_server(&mut told)).await.expect("it is told");
    assert_eq!(event.change, api::ServerChange::Down);
    assert!(event.reason.contains("(tcp check)"), "{}", event.reason);
    assert!(!web.is_up() && !web.is_doubted() && web.passive_down_since().is_some());
}

async fn next_of_a_server(told: &mut broadcast::Receiver<Arc<api::ServerEvent>>) -> Arc<api::ServerEvent> {
    loop {
        let event = told.recv().await.unwrap();
        if event.server.is_some() {
            return event;
        }
    }
}

// The design's bar: 200 MB for 1,000 services with 20 servers each, in all.
#[tokio::test(start_paused = true)]
async fn idle_probes_are_small() {
    let text: String = (0..1000)
        .map(|number| {
            let listen = format!("203.0.{}.{}:80", number / 250, number % 250 + 1);
            let servers: String = (1..=20)
                .map(|last| format!("{{ address = \"10.{}.{}.{last}:80\" }}, ", number / 250, number % 250))
                .collect();
            let check = "check = { type = \"http\", interval = \"10s\" }";
            format!("[[service]]\nname = \"s{number}\"\nlisten = \"{listen}\"\n{check}\nserver = [{servers}]\n")
        })
        .collect();
    let config = Config::parse(Path::new("x.toml"), &text).unwrap_or_else(|errors| panic!("{errors}"));
    let compiled = config.compiled().unwrap_or_else(|errors| panic!("{errors}"));
    let snapshot = Arc::new(Snapshot::build(compiled.snapshot, None).unwrap());
    let gateway = Arc::new(Gateway::new(snapshot.clone(), 1, 1024, [0, 0]));
    let health = Health::new(gateway, 1000);
    let prepared = Prepared::new(compiled.health).unwrap();
    let before = resident();
    health.configure(prepared, &snapshot);
    let bytes = resident().saturating_sub(before) / 20_000;
    assert_eq!(health.table.lock().count(), (20_000, 0));
    assert!(bytes < 1500, "{bytes} bytes a probe");
}

/// Bytes of memory that this process has.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap() * 4096
}
