//! Tunnels: what it takes to wrap a packet, to cut a super-packet of 64 KiB, and to take the outer headers off again.
//!
//! `pieces` hands each piece to a closure that does nothing, so that only the cutting is measured; the figure is for the
//! whole super-packet, and the throughput counts its pieces. Times are the thread's CPU time.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gatun::wire::{Addr, Encapsulation, Outer, PacketBuf, View, Wrap, pieces, unwrap};

mod cpu_time;
#[path = "../tests/support/mod.rs"]
mod support;

use cpu_time::CpuTime;
use support::packet::{ACK, Build, PSH, tcp};

criterion_group! {
    name = tunnel;
    config = Criterion::default().with_measurement(CpuTime).sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = wrap_one, cut_super_packet, fragment_one, unwrap_one
}
criterion_main!(tunnel);

const GUE: Encapsulation = Encapsulation::Gue { port: 6080 };
/// Inner and outer family, encapsulation, and how the row is called.
const TUNNELS: [(&str, bool, bool, Encapsulation); 5] = [
    ("4in4", true, true, Encapsulation::Ipip),
    ("6in6", false, false, Encapsulation::Ipip),
    ("gue-4in4", true, true, GUE),
    ("gue-6in6", false, false, GUE),
    ("4in6", true, false, Encapsulation::Ipip),
];

fn outer(v4: bool, encapsulation: Encapsulation) -> Outer {
    let (src, dst) = match v4 {
        true => (Addr::from_v4([10, 20, 0, 1]), Addr::from_v4([10, 30, 0, 14])),
        false => (Addr::from_v6([0xfd; 16]), Addr::from_v6([0xfc; 16])),
    };
    Outer { src, dst, encapsulation, ttl: 63, id: 1, entropy: 0x1234 }
}

fn segment(v4: bool, payload: usize) -> Build {
    let (src, dst) = match v4 {
        true => ("198.51.100.2:40000", "203.0.113.10:80"),
        false => ("[2001:db8:1::2]:40000", "[2001:db8:f::10]:80"),
    };
    Build { dont_fragment: true, ..tcp(src, dst).flags(ACK | PSH).payload(vec![0x5a; payload]) }
}

fn wrap_one(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("wrap");
    group.throughput(Throughput::Elements(1));
    for (name, v4, outer_v4, encapsulation) in TUNNELS {
        let outer = outer(outer_v4, encapsulation);
        let mut buf = segment(v4, 1200).partial();
        let (view, vnet) = (View::parse(buf.packet()).expect("valid"), buf.vnet);
        group.bench_function(BenchmarkId::new("1200-bytes", name), |b| {
            b.iter(|| {
                let outcome = black_box(&outer).wrap(&mut buf, &view);
                // As before, so that the next one finds a packet.
                buf.advance(outer.overhead());
                buf.vnet = vnet;
                outcome
            });
        });
    }
}

fn cut_super_packet(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("pieces");
    for (name, v4, outer_v4, encapsulation) in TUNNELS {
        let wrap = Wrap { outer: outer(outer_v4, encapsulation), mtu: 1500 };
        let buf = segment(v4, 65_000).super_packet(1380);
        group.throughput(Throughput::Elements(65_000u64.div_ceil(1380)));
        group.bench_function(BenchmarkId::new("64-KiB", name), |b| b.iter(|| hand_on(&buf, &wrap)));
    }
}

fn fragment_one(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("fragments");
    group.throughput(Throughput::Elements(1));
    let datagram = Build { dont_fragment: false, ..segment(true, 1460) };
    let wrap = Wrap { outer: outer(true, Encapsulation::Ipip), mtu: 1500 };
    for (name, buf) in [("complete", datagram.buf()), ("partial", datagram.partial())] {
        group.bench_function(BenchmarkId::new("1500-bytes", name), |b| b.iter(|| hand_on(&buf, &wrap)));
    }
}

fn unwrap_one(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("unwrap");
    group.throughput(Throughput::Elements(1));
    for (name, v4, outer_v4, encapsulation) in TUNNELS {
        let outer = outer(outer_v4, encapsulation);
        let mut buf = segment(v4, 1200).partial();
        let view = View::parse(buf.packet()).expect("valid");
        outer.wrap(&mut buf, &view).expect("it fits");
        let vnet = buf.vnet;
        group.bench_function(BenchmarkId::new("1200-bytes", name), |b| {
            b.iter(|| {
                let outcome = unwrap(black_box(&mut buf), |port| port == 6080);
                buf.prepend(outer.overhead());
                buf.vnet = vnet;
                outcome
            });
        });
    }
}

fn hand_on(buf: &PacketBuf, wrap: &Wrap) -> usize {
    let each = |vnet: &_, headers: &_, payload: &_| {
        black_box((vnet, headers, payload));
        Ok::<(), ()>(())
    };
    pieces(black_box(buf), wrap, each).expect("it can be cut")
}
