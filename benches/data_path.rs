//! The data path: parse, hit, miss, expiry; over 1 k, 100 k and 1 M flows and both families.
//!
//! Flows are visited in random order, so that the caches help no more than they would a gateway with as many clients.
//! `prepare` is what writing the next packet into the buffer costs; the figures of hit and miss include it. `memory` is
//! what one cache miss costs on the machine at hand: reading places of a 256 MB array in an order that cannot be foreseen.
//!
//! Times are the thread's CPU time, so that other work on the machine matters less.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gatun::command::{Command, FlowFilter};
use gatun::engine::Engine;
use gatun::io::huge_pages;
use gatun::time::Instant;
use gatun::verdict::Verdict;
use gatun::wire::View;

mod cpu_time;
#[path = "../tests/support/mod.rs"]
mod support;

use cpu_time::{CpuTime, cpu_time};
use support::counting;
use support::packet::{ACK, Extension, PSH, SYN, tcp};
use support::traffic::{self, Client, Inside, establish, go_out, snapshot};
use support::world::engine;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const SIZES: [u32; 3] = [1_000, 100_000, 1_000_000];
/// Flows admitted or expired between two readings of the clock.
const CHUNK: u32 = 4_096;

criterion_group! {
    name = data_path;
    config = Criterion::default().with_measurement(CpuTime).sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = parse, memory_latency, hit, miss, masquerade, expiry
}
criterion_main!(memory, data_path);

/// An engine as a gateway has it, in huge pages, with `flows` established flows and room for `max`.
fn established(v4: bool, flows: u32, max: usize) -> Engine {
    let mut engine = engine(snapshot(), max);
    huge_pages::advise(&mut engine);
    establish(&mut engine, v4, flows, Instant::ZERO);
    engine
}

fn family(v4: bool) -> &'static str {
    if v4 { "v4" } else { "v6" }
}

fn parse(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(1));
    let v6 = tcp("[2001:db8::1]:1000", "[2001:db8::2]:80").flags(ACK);
    let packets = [
        ("v4", tcp("10.0.0.1:1000", "10.0.0.2:80").flags(ACK).bytes()),
        ("v6", v6.bytes()),
        ("v6-extensions", v6.extensions(&[Extension::HopByHop(0), Extension::Destination(1)]).bytes()),
    ];
    for (name, packet) in packets {
        group.bench_function(name, |b| b.iter(|| View::parse(black_box(&packet))));
    }
}

fn memory_latency(c: &mut Criterion<CpuTime>) {
    const LINES: usize = 1 << 22;
    // Each line names the next: one cycle through all of them (Sattolo).
    let mut next: Vec<[u64; 8]> = (0..LINES as u64).map(|n| [n; 8]).collect();
    let mut order = Order::new();
    for n in (1..LINES).rev() {
        let other = order.next(n as u32) as usize;
        next.swap(n, other);
    }
    let mut at = 0;
    c.bench_function("memory/random-read", |b| {
        b.iter(|| {
            at = next[at][0] as usize;
            at
        });
    });
}

fn hit(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("hit");
    group.throughput(Throughput::Elements(1));
    for v4 in [true, false] {
        let client = Client::new(v4, ACK | PSH, 1001, 5001, 64);
        let mut buf = client.buf();
        let mut order = Order::new();
        group.bench_function(BenchmarkId::new("prepare", family(v4)), |b| {
            b.iter(|| {
                client.write(&mut buf, order.next(1_000_000));
                black_box(&mut buf);
            });
        });
        for flows in SIZES {
            let mut engine = established(v4, flows, flows as usize);
            let mut micros = 0;
            group.bench_function(BenchmarkId::new(family(v4), flows), |b| {
                b.iter(|| {
                    micros += 1;
                    client.write(&mut buf, order.next(flows));
                    engine.handle_packet(Instant::from_micros(micros), black_box(&mut buf))
                });
            });
        }
    }
}

fn miss(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("miss");
    group.throughput(Throughput::Elements(1));
    for v4 in [true, false] {
        let syn = Client::new(v4, SYN, 1000, 0, 0);
        let mut buf = syn.buf();
        for flows in SIZES {
            let mut engine = established(v4, flows, (flows + CHUNK) as usize);
            let mut now = Instant::ZERO;
            let mut next = flows;
            group.bench_function(BenchmarkId::new(family(v4), flows), |b| {
                b.iter_custom(|iterations| {
                    let mut spent = Duration::ZERO;
                    let mut left = iterations;
                    while left > 0 {
                        let chunk = left.min(u64::from(CHUNK));
                        let start = cpu_time();
                        for _ in 0..chunk {
                            // An odd factor visits every client number once before it repeats one.
                            syn.write(&mut buf, flows + next.wrapping_mul(0x9e37_79b1) % 0x3000_0000);
                            next = next.wrapping_add(1);
                            black_box(engine.handle_packet(now, &mut buf));
                        }
                        spent += cpu_time() - start;
                        left -= chunk;
                        // The new flows go again, unmeasured.
                        now = now + Duration::from_secs(2);
                        while engine.poll_timeout().is_some_and(|deadline| deadline <= now) {
                            engine.handle_timeout(now);
                        }
                    }
                    assert_eq!(engine.occupancy().0, flows as usize);
                    spent
                });
            });
        }
        // A SYN flood at the limit: each new flow takes the place of the oldest half-open one.
        let mut engine = engine(snapshot(), 100_000);
        let mut next = 0u32;
        group.bench_function(BenchmarkId::new("evicting", family(v4)), |b| {
            b.iter(|| {
                syn.write(&mut buf, next & 0x3fff_ffff);
                next = next.wrapping_add(1);
                engine.handle_packet(Instant::ZERO, black_box(&mut buf))
            });
        });
    }
}

fn expiry(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("expiry");
    group.throughput(Throughput::Elements(1));
    let syn = Client::new(true, SYN, 1000, 0, 0);
    let mut buf = syn.buf();
    for flows in SIZES {
        let mut engine = established(true, flows, (flows + CHUNK) as usize);
        let mut now = Instant::ZERO;
        group.bench_function(BenchmarkId::new("half-open", flows), |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                let mut left = iterations;
                while left > 0 {
                    let chunk = left.min(u64::from(CHUNK)) as u32;
                    for n in 0..chunk {
                        syn.write(&mut buf, flows + n);
                        engine.handle_packet(now, &mut buf);
                    }
                    now = now + Duration::from_secs(2);
                    let start = cpu_time();
                    while engine.poll_timeout().is_some_and(|deadline| deadline <= now) {
                        engine.handle_timeout(now);
                    }
                    spent += cpu_time() - start;
                    left -= u64::from(chunk);
                }
                assert_eq!(engine.occupancy().0, flows as usize);
                spent
            });
        });
    }
    // Through the wheel.
    let mut engine = engine(snapshot(), 100_000);
    let mut now = Instant::ZERO;
    group.bench_function("established", |b| {
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                let chunk = left.min(100_000) as u32;
                establish(&mut engine, true, chunk, now);
                now = now + Duration::from_secs(32 * 86_400);
                let start = cpu_time();
                while engine.poll_timeout().is_some_and(|deadline| deadline <= now) {
                    engine.handle_timeout(now);
                }
                spent += cpu_time() - start;
                left -= u64::from(chunk);
            }
            assert_eq!(engine.occupancy().0, 0);
            spent
        });
    });
}

/// UDP through a masquerade: packets of flows there are, as `hit` has them of services by nat; and flows that begin, each with
/// a mapping, while 95 % of all ports are taken.
fn masquerade(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("masquerade");
    group.throughput(Throughput::Elements(1));
    for v4 in [true, false] {
        let inside = Inside::new(v4, 64);
        let mut buf = inside.buf();
        let mut order = Order::new();
        for flows in SIZES {
            let mut engine = masquerading(v4, flows, flows + CHUNK);
            let mut micros = 0;
            group.bench_function(BenchmarkId::new(format!("hit/{}", family(v4)), flows), |b| {
                b.iter(|| {
                    micros += 1;
                    inside.write(&mut buf, order.next(flows));
                    engine.handle_packet(Instant::from_micros(micros), black_box(&mut buf))
                });
            });
            let mut next = flows;
            group.bench_function(BenchmarkId::new(format!("miss/{}", family(v4)), flows), |b| {
                b.iter_custom(|iterations| {
                    let mut spent = Duration::ZERO;
                    let mut left = iterations;
                    while left > 0 {
                        let chunk = left.min(u64::from(CHUNK));
                        let start = cpu_time();
                        for _ in 0..chunk {
                            inside.write(&mut buf, next);
                            next += 1;
                            black_box(engine.handle_packet(Instant::ZERO, &mut buf));
                        }
                        spent += cpu_time() - start;
                        left -= chunk;
                        // The new flows go again, unmeasured.
                        let all = Command::Delete { filter: FlowFilter::default(), cursor: flows as usize };
                        engine.apply(Instant::ZERO, all.clone());
                        engine.apply(Instant::ZERO, all);
                        assert_eq!(engine.occupancy().0, flows as usize);
                    }
                    spent
                });
            });
        }
    }
}

/// An engine with `flows` masqueraded flows, room for `max`, and ports for one in twenty more.
fn masquerading(v4: bool, flows: u32, max: u32) -> Engine {
    let mut engine = engine(traffic::masquerade(max + max / 20), max as usize);
    huge_pages::advise(&mut engine);
    go_out(&mut engine, v4, flows, Instant::ZERO);
    engine
}

/// Prints what a flow costs in memory, all in, and that a hit allocates nothing.
fn memory() {
    for v4 in [true, false] {
        let flows = 1_000_000;
        let snapshot = traffic::masquerade(flows);
        let before = counting::bytes();
        let mut engine = engine(snapshot, flows as usize);
        go_out(&mut engine, v4, flows, Instant::ZERO);
        let bytes = (counting::bytes() - before) as f64 / f64::from(flows);
        println!("memory: {flows} masqueraded {} flows: {bytes:.1} bytes a flow with its mapping", family(v4));
        assert!(bytes <= 256.0, "the bar is 256");
    }
    for flows in SIZES {
        let before = counting::bytes();
        let mut engine = established(true, flows, flows as usize);
        let bytes = counting::bytes() - before;
        let client = Client::new(true, ACK, 1001, 5001, 64);
        let mut buf = client.buf();
        let mut order = Order::new();
        let allocations = counting::allocations();
        for _ in 0..100_000 {
            client.write(&mut buf, order.next(flows));
            assert_eq!(engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Forward);
        }
        let allocations = counting::allocations() - allocations;
        println!(
            "memory: {flows} flows in {bytes} bytes: {} a flow; {allocations} allocations in 100000 hits",
            bytes / i64::from(flows)
        );
        assert_eq!(allocations, 0, "a hit allocates");
    }
}

/// A random walk over client numbers (xorshift: no multiplication in the way of what is measured).
struct Order(u64);

impl Order {
    fn new() -> Order {
        Order(0x9e37_79b9_7f4a_7c15)
    }

    #[inline]
    fn next(&mut self, below: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (((self.0 >> 32) * u64::from(below)) >> 32) as u32
    }
}
