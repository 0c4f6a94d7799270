//! A whole network under a virtual clock: smoltcp hosts as clients and servers at both ends of the engine, TCP and UDP over
//! both families, and links that lose, delay, duplicate, reorder and corrupt. Every transfer must arrive whole, with
//! reloads in the middle. A seed decides everything; `GATUN_SEED=N` runs that one alone, `GATUN_SEEDS=N` the first N.

mod host;
mod network;

use gatun::service::ProxyProtocol;
use network::Network;

const SEEDS: u64 = 24;

#[test]
fn transfers_survive_bad_links_and_reloads() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a seed is a number"));
    let seeds = match number("GATUN_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("GATUN_SEEDS").unwrap_or(SEEDS)).collect::<Vec<u64>>(),
    };
    let mut servers = [0; network::SERVERS];
    let (mut packets, mut impaired, mut ports) = (0, 0, (0, 0));
    for &seed in &seeds {
        let _guard = SayOnPanic(seed);
        let mut network = Network::new(seed);
        network.run();
        for (sum, n) in servers.iter_mut().zip(network.served()) {
            *sum += n;
        }
        packets += network.packets;
        impaired += network.impaired;
        ports = (ports.0 + network.ports().0, ports.1 + network.ports().1);
    }
    println!(
        "{} seeds, {packets} packets, {impaired} of them impaired; connections by server: {servers:?}",
        seeds.len()
    );
    if seeds.len() > 1 {
        assert!(servers.iter().all(|n| *n > 0), "a server had nothing to do: {servers:?}");
        assert!(impaired > packets / 100, "the links were too good to show anything");
        assert!(ports.0 > 0 && ports.1 > 0, "there were ports for everybody: {ports:?}");
    }
}

#[test]
fn transfers_survive_when_clients_are_asked_first() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a seed is a number"));
    let seeds = match number("GATUN_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("GATUN_SEEDS").unwrap_or(SEEDS)).collect::<Vec<u64>>(),
    };
    let (mut proven, mut asked_again) = (0, 0);
    for &seed in &seeds {
        let _guard = SayOnPanic(seed);
        let mut network = Network::with_a_syn_proxy(seed);
        network.run();
        let (sent, taken, created) = network.cookies();
        assert!(taken >= network.connections && sent >= taken && created >= taken, "{sent} {taken} {created}");
        proven += taken;
        asked_again += sent - taken;
    }
    assert!(proven > 0 && (seeds.len() == 1 || asked_again > 0), "nothing was lost");
}

#[test]
fn no_client_hangs_when_a_server_dies() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a seed is a number"));
    let seeds = match number("GATUN_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("GATUN_SEEDS").unwrap_or(SEEDS)).collect::<Vec<u64>>(),
    };
    let mut resets = 0;
    for &seed in &seeds {
        let _guard = SayOnPanic(seed);
        let mut network = Network::with_a_death(seed);
        network.run();
        resets += network.resets();
    }
    assert!(seeds.len() == 1 || resets > 0, "nobody was talking to the server that died");
}

/// Over links that lose and reorder, every connection begins with one header and goes on as without.
#[test]
fn servers_are_told_their_clients() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a seed is a number"));
    let seeds = match number("GATUN_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("GATUN_SEEDS").unwrap_or(SEEDS / 2)).collect::<Vec<u64>>(),
    };
    for &seed in &seeds {
        let _guard = SayOnPanic(seed);
        let version = ProxyProtocol::ALL[seed as usize % 2];
        let mut network = Network::with_proxy_protocol(seed, version);
        network.run();
        assert_eq!(network.told(), network.served().iter().sum::<usize>());
    }
}

/// Clients that are clients of services and inside hosts of a masquerade at once, while its pool changes.
#[test]
fn inside_hosts_get_through() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a seed is a number"));
    let seeds = match number("GATUN_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("GATUN_SEEDS").unwrap_or(SEEDS / 2)).collect::<Vec<u64>>(),
    };
    for &seed in &seeds {
        let _guard = SayOnPanic(seed);
        let mut network = Network::with_a_masquerade(seed);
        network.run();
        assert!(network.untranslated > 0, "nothing came to the pool");
    }
}

#[test]
fn one_seed_is_one_run() {
    let run = || {
        let mut network = Network::new(4711);
        network.run();
        (network.packets, network.impaired, network.now, network.served())
    };
    assert_eq!(run(), run());
}

/// Tells the seed of a run that fails.
struct SayOnPanic(u64);

impl Drop for SayOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed was {0}; run it again with GATUN_SEED={0}", self.0);
        }
    }
}
