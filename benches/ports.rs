//! Ports of pools: taking one, and a port's whole round through flow and quarantine, while so many of a server's are in use; and
//! what flows by fullnat cost besides those by nat, with 100,000 in the table.
//!
//! Times are the thread's CPU time, so that other work on the machine matters less.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gatun::engine::Engine;
use gatun::forward::fullnat::{Lane, Lanes};
use gatun::io::huge_pages;
use gatun::service::{Method, Pool};
use gatun::time::Instant;
use gatun::wire::Protocol;

mod cpu_time;
#[path = "../tests/support/mod.rs"]
mod support;

use cpu_time::{CpuTime, cpu_time};
use support::packet::{ACK, PSH, SYN};
use support::traffic::{Client, establish, snapshot_by};
use support::world::{addr, engine};

const PERCENT: [u32; 4] = [0, 50, 95, 99];
const FLOWS: u32 = 100_000;
/// Ports taken, or flows admitted, between two readings of the clock.
const CHUNK: u64 = 256;
const QUARANTINE: Duration = Duration::from_secs(5);

criterion_group! {
    name = ports;
    config = Criterion::default().with_measurement(CpuTime).sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = take, round, flows
}
criterion_main!(ports);

fn lane(server: u16) -> Lane {
    Lane { pool: addr("203.0.113.100"), server: addr("10.20.0.11"), port: server, protocol: Protocol::TCP }
}

/// SplitMix64, as the engine has it.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Eight servers, of each of whose 64512 ports so many are taken.
fn filled(percent: u32) -> (Lanes, Arc<Pool>) {
    let pool = snapshot_by(Method::Fullnat).pools.of(addr("203.0.113.100")).expect("it is there").clone();
    let mut lanes = Lanes::new((0, 1), [1, 2], 1 << 20, 1 << 20);
    let mut state = 7;
    for server in 0..8 {
        for _ in 0..64_512 * percent / 100 {
            lanes.take(&lane(server), &pool, random(&mut state)).expect("it is free");
        }
    }
    (lanes, pool)
}

fn take(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("ports");
    group.throughput(Throughput::Elements(1));
    for percent in PERCENT {
        let ((mut lanes, pool), mut state) = (filled(percent), 9);
        let mut taken = Vec::with_capacity(CHUNK as usize);
        group.bench_function(BenchmarkId::new("take", percent), |b| {
            b.iter_custom(|iterations| {
                let (mut spent, mut left) = (Duration::ZERO, iterations);
                while left > 0 {
                    let chunk = left.min(CHUNK);
                    let start = cpu_time();
                    for n in 0..chunk {
                        let random = random(&mut state);
                        taken.push(lanes.take(&lane(n as u16 % 8), &pool, black_box(random)).expect("one is free"));
                    }
                    spent += cpu_time() - start;
                    left -= chunk;
                    taken.drain(..).for_each(|(number, port)| lanes.give_unused(number, port));
                }
                spent
            });
        });
    }
}

/// Taken, given back, and released after its quarantine.
fn round(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("ports");
    group.throughput(Throughput::Elements(1));
    for percent in PERCENT {
        let ((mut lanes, pool), mut state, mut now) = (filled(percent), 9, Instant::from_secs(100));
        group.bench_function(BenchmarkId::new("round", percent), |b| {
            b.iter(|| {
                // 100,000 of them a second, over eight servers: at 99 % there would be less than are in quarantine.
                now = now + Duration::from_micros(if percent > 95 { 100_000 } else { 2_000 });
                let random = random(&mut state);
                let (number, port) = lanes.take(&lane(random as u16 % 8), &pool, random).expect("one is free");
                lanes.give(now, number, port);
                lanes.expire(now, QUARANTINE, 2)
            });
        });
    }
}

fn flows(c: &mut Criterion<CpuTime>) {
    for method in [Method::Nat, Method::Fullnat] {
        let mut engine: Engine = engine(snapshot_by(method), (FLOWS + 4096) as usize);
        huge_pages::advise(&mut engine);
        establish(&mut engine, true, FLOWS, Instant::ZERO);
        let (data, syn) = (Client::new(true, ACK | PSH, 1001, 5001, 64), Client::new(true, SYN, 1000, 0, 0));
        let mut buf = data.buf();
        let (mut micros, mut state) = (0, 3);
        let mut group = c.benchmark_group("flows");
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("hit", method.word()), |b| {
            b.iter(|| {
                micros += 1;
                data.write(&mut buf, (random(&mut state) % u64::from(FLOWS)) as u32);
                engine.handle_packet(Instant::from_micros(micros), black_box(&mut buf))
            });
        });
        let mut buf = syn.buf();
        let (mut now, mut next) = (Instant::from_secs(1000), FLOWS);
        group.bench_function(BenchmarkId::new("miss", method.word()), |b| {
            b.iter_custom(|iterations| {
                let (mut spent, mut left) = (Duration::ZERO, iterations);
                while left > 0 {
                    let chunk = left.min(4096);
                    let start = cpu_time();
                    for _ in 0..chunk {
                        syn.write(&mut buf, FLOWS + next.wrapping_mul(0x9e37_79b1) % 0x3000_0000);
                        next = next.wrapping_add(1);
                        black_box(engine.handle_packet(now, &mut buf));
                    }
                    spent += cpu_time() - start;
                    left -= chunk;
                    // They go again, and so does their quarantine, unmeasured.
                    now = now + Duration::from_secs(8);
                    while engine.poll_timeout().is_some_and(|deadline| deadline <= now) {
                        engine.handle_timeout(now);
                    }
                }
                assert_eq!(engine.occupancy().0, FLOWS as usize);
                spent
            });
        });
    }
}
