//! Against a gateway that answers as it is told.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;

/// Plays a gateway: an answer for each edit, and a status in which traffic goes on. `None` hangs up.
fn gateway(path: &Path, edits: Vec<Option<Value>>) {
    let listener = UnixListener::bind(path).unwrap();
    let edits = Arc::new(Mutex::new(edits.into_iter()));
    let admitted = Arc::new(AtomicU64::new(0));
    let serve = move |stream: UnixStream| {
        for line in io::BufReader::new(&stream).lines() {
            let request: Value = serde_json::from_str(&line.unwrap()).unwrap();
            let answer = match request["op"].as_str() {
                Some("status") => json!({ "v": 1, "ok": status(admitted.fetch_add(1, Ordering::Relaxed)) }),
                _ => match edits.lock().next().unwrap() {
                    Some(answer) => answer,
                    None => break,
                },
            };
            (&stream).write_all(format!("{answer}\n").as_bytes()).unwrap();
        }
    };
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
}

fn status(admitted: u64) -> Value {
    let rates = json!({ "flows": 0.0, "packets_to_server": 0.0, "bytes_to_server": 0.0, "packets_to_client": 0.0,
                        "bytes_to_client": 0.0 });
    let volume = json!({ "packets": admitted, "bytes": 40 * admitted });
    let server = json!({ "service": "web", "name": "a", "address": "10.0.0.1", "port": 80, "weight": 1, "method": "nat",
                         "reachable": true, "active": 0, "inactive": 0, "admitted": admitted, "to_server": volume,
                         "to_client": volume, "rates": rates });
    let service = json!({ "name": "web", "listen": "203.0.113.10:80", "protocol": "tcp", "method": "nat",
                          "scheduler": "rr", "servers": [server] });
    json!({ "version": "1", "pid": 1, "uptime": 1, "device": null, "config": null, "generation": 1, "reloads_ok": 0,
            "reloads_failed": 0, "shards": 1, "flows": 0, "flows_limit": 1, "rates": rates, "services": [service],
            "drops": [] })
}

fn run(edits: Vec<Option<Value>>) -> u8 {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sock");
    gateway(&path, edits);
    let mut output = Output::stdout();
    let words: Vec<String> = "-E -t 203.0.113.10:80 -s wrr".split(' ').map(str::to_owned).collect();
    Session::new("ipvsadm", Some(path), &mut output).run(&words).unwrap()
}

fn fault(message: &str) -> Option<Value> {
    Some(json!({ "v": 1, "error": { "code": "failed", "message": message } }))
}

fn done() -> Option<Value> {
    Some(json!({ "v": 1, "ok": { "changes": [], "generation": 2 } }))
}

// Counters that go on are no change by somebody else: the reason is told, once.
#[test]
fn a_refused_change_is_told_at_once_under_traffic() {
    assert_eq!(run(vec![fault("it cannot be"), done()]), NOT_DONE);
}

#[test]
fn a_gateway_that_is_stopping_is_waited_for() {
    assert_eq!(run(vec![fault("the daemon is stopping"), None, done()]), 0);
}
