//! What it costs to choose a server, by every scheduler, among 3, 100 and 1000 servers.
//!
//! `idle`: no server has flows, and no load changes. `loaded`: every server has flows; before each pick one flow begins at the
//! server picked last and one ends at another, as on a busy gateway; what these two cost is in the figure. `few`: nine servers
//! of ten are down. Times are the thread's CPU time.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use gatun::service::{PortRange, Request, SchedulerKind, ServerSpec, Service, ServiceSpec, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::wire::Addr;

mod cpu_time;

use cpu_time::CpuTime;

criterion_group! {
    name = scheduler;
    config = Criterion::default().with_measurement(CpuTime).sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500));
    targets = idle, loaded, few
}
criterion_main!(scheduler);

const COUNTS: [usize; 3] = [3, 100, 1000];

fn service(scheduler: SchedulerKind, servers: usize) -> Arc<Service> {
    let server = |index: usize| ServerSpec {
        name: index.to_string(),
        address: Addr::from_v4([10, 20, (index >> 8) as u8, index as u8]),
        weight: 1 + index as u32 % 5,
        ..ServerSpec::default()
    };
    let spec = ServiceSpec {
        name: "bench".to_owned(),
        vip: Addr::from_v4([203, 0, 113, 10]),
        ports: PortRange::single(80),
        scheduler,
        servers: (0..servers).map(server).collect(),
        ..ServiceSpec::default()
    };
    let snapshot = Snapshot::build(SnapshotSpec { services: vec![spec], ..SnapshotSpec::default() }, None);
    snapshot.expect("the specification is sound").live[0].clone()
}

fn request(client: u32) -> Request {
    Request {
        now: Instant::from_micros(u64::from(client)),
        client: Addr::from_v4(client.to_be_bytes()),
        client_port: client as u16,
        vip: Addr::from_v4([203, 0, 113, 10]),
        port: 80,
        is_urgent: false,
    }
}

fn for_each(c: &mut Criterion<CpuTime>, name: &str, prepare: impl Fn(&Service), turnover: bool) {
    let mut group = c.benchmark_group(name);
    for &kind in SchedulerKind::ALL {
        for count in COUNTS {
            let service = service(kind, count);
            prepare(&service);
            let (mut client, mut oldest) = (0_u32, 0);
            group.bench_function(BenchmarkId::new(kind.word(), count), |b| {
                b.iter(|| {
                    client = client.wrapping_add(0x9e37_79b1);
                    let picked = service.scheduler.pick(&service.servers, black_box(&request(client)));
                    if turnover && let Some(picked) = picked {
                        service.servers[picked].start(true);
                        // Not the next in the list: that is where several schedulers look first.
                        oldest = (oldest + 577) % count;
                        if service.servers[oldest].load.active() > 0 {
                            service.servers[oldest].end(true);
                        }
                    }
                    black_box(picked)
                });
            });
        }
    }
    group.finish();
}

fn idle(c: &mut Criterion<CpuTime>) {
    for_each(c, "idle", |_| (), false);
}

fn loaded(c: &mut Criterion<CpuTime>) {
    let load = |service: &Service| {
        for (index, server) in service.servers.iter().enumerate() {
            (0..50 * (1 + index % 5)).for_each(|_| server.start(true));
        }
    };
    for_each(c, "loaded", load, true);
}

fn few(c: &mut Criterion<CpuTime>) {
    let fell = |service: &Service| {
        for server in service.servers.iter().enumerate().filter(|(index, _)| index % 10 != 2).map(|(_, server)| server)
        {
            server.state.set_up(Instant::ZERO, false);
        }
    };
    for_each(c, "few", fell, false);
}
