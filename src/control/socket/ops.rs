//! What a client can ask for. `docs/CONTROL-API.md` shows every operation with an example.

mod lists;

use std::io;
use std::sync::Arc;

use parking_lot::MutexGuard;
use serde_json::Value;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::client::Out;
use super::line::Lines;
use crate::command::{Command, FlowFilter, Outcome};
use crate::control::api::{self, Fault, FaultCode, Request};
use crate::control::context::{Control, Told, What};
use crate::control::drain;
use crate::control::explain::{Question, ask_gateway};
use crate::control::view;

/// Events that go to a watcher in one write.
const EVENTS_PER_WRITE: usize = 256;

/// Does what `line` asks. The outer error means that the client is gone; the inner one is its answer.
pub(super) async fn perform(
    line: &[u8],
    control: &Arc<Control>,
    lines: &mut Lines,
    out: &mut Out,
) -> io::Result<Result<(), Fault>> {
    let request = match parse(line) {
        Ok(request) => request,
        Err(fault) => return Ok(Err(fault)),
    };
    match request {
        Request::Ping {} => out.ok(&api::Pong::ours()),
        Request::Status {} => out.ok(&control.status()),
        Request::Stats {} => out.ok(&control.stats()),
        Request::Neighbours {} => match control.neighbours() {
            Ok(neighbours) => out.ok(&neighbours),
            Err(fault) => return Ok(Err(fault)),
        },
        Request::ServiceList {} => out.ok(&control.services()),
        Request::ServerList { service } => match servers(control, service.as_deref()) {
            Ok(servers) => out.ok(&servers),
            Err(fault) => return Ok(Err(fault)),
        },
        Request::ServerWatch { service } => return watch_servers(control, service.as_deref(), lines, out).await,
        Request::ServerDrain { service, server, deadline, then, cancel } => {
            let deadline = drain::deadline(deadline.as_deref(), then.as_deref());
            match deadline.and_then(|deadline| control.drain(&service, &server, deadline, cancel)) {
                Ok(draining) => out.ok(&draining),
                Err(fault) => return Ok(Err(fault)),
            }
        }
        Request::CountersZero { service } => match control.zero(service.as_deref()) {
            Ok(zeroed) => out.ok(&api::Zeroed { zeroed }),
            Err(fault) => return Ok(Err(fault)),
        },
        Request::PersistenceList {} => lists::kept(control, out).await?,
        Request::ConntrackList { filter } => match view::filter(&control.gateway().snapshot(), &filter) {
            Ok(filter) => lists::flows(control, &filter, out).await?,
            Err(fault) => return Ok(Err(fault)),
        },
        Request::ConntrackWatch { filter } => match view::filter(&control.gateway().snapshot(), &filter) {
            Ok(filter) => watch(control, &filter, lines, out).await?,
            Err(fault) => return Ok(Err(fault)),
        },
        Request::ConntrackCount {} => out.ok(&control.count()),
        Request::ConntrackDelete { filter } => match delete(control, &filter).await {
            Ok(deleted) => out.ok(&api::Deleted { deleted }),
            Err(fault) => return Ok(Err(fault)),
        },
        Request::ConntrackFlush {} => {
            out.ok(&api::Deleted { deleted: delete_all(control, &FlowFilter::default()).await });
        }
        Request::ConntrackExpect {} => lists::expected(control, out).await?,
        Request::NatMappings { filter } => match view::MappingFilter::new(&control.gateway().snapshot(), &filter) {
            Ok(filter) => lists::mappings(control, &filter, out).await?,
            Err(fault) => return Ok(Err(fault)),
        },
        Request::NatPools {} => out.ok(&control.nat()),
        Request::Explain { proto, src, dst, sport, dport, tcp_flags } => {
            match Question::new(&proto, (src, sport), (dst, dport), tcp_flags.as_deref()) {
                Ok(question) => out.ok(&ask_gateway(control.gateway(), question)),
                Err(fault) => return Ok(Err(fault)),
            }
        }
        Request::Reload { config } => return order(control, What::Reload { config }, out).await,
        Request::Diff { config } => return order(control, What::Diff { config }, out).await,
        Request::Save { force } => return order(control, What::Save { force }, out).await,
        Request::Edit { edits, save } => return order(control, What::Edit { edits, save }, out).await,
    }
    Ok(Ok(()))
}

async fn order(control: &Control, what: What, out: &mut Out) -> io::Result<Result<(), Fault>> {
    Ok(control.order(what).await.map(|difference| out.ok(&difference)))
}

/// Reads a request. Never panics, whatever `line` is.
pub fn parse(line: &[u8]) -> Result<Request, Fault> {
    let bad = |message: String| Fault::new(FaultCode::BadRequest, message);
    let value: Value = serde_json::from_slice(line).map_err(|error| bad(format!("no JSON: {error}")))?;
    let Value::Object(mut fields) = value else {
        return Err(bad("a request is a JSON object, as {\"v\":1,\"op\":\"status\"}".to_owned()));
    };
    match fields.remove("v") {
        Some(Value::Number(v)) if v.as_u64() == Some(api::VERSION) => {}
        Some(other) => {
            let message = format!("version {other} is not spoken here; this is version {}", api::VERSION);
            return Err(Fault::new(FaultCode::UnsupportedVersion, message));
        }
        None => return Err(bad(format!("the field \"v\" (the version, {}) is missing", api::VERSION))),
    }
    let op = match fields.get("op") {
        Some(Value::String(op)) => op.as_str(),
        _ => return Err(bad("the field \"op\" (a string) is missing".to_owned())),
    };
    if api::RESERVED_OPS.contains(&op) {
        return Err(Fault::new(
            FaultCode::NotSupported,
            format!("{op} is no operation; it is an edit: use the operation edit"),
        ));
    }
    if !api::OPS.contains(&op) {
        let message = format!("{op:?} is no operation; there are: {}", api::OPS.join(", "));
        return Err(Fault::new(FaultCode::UnknownOp, message));
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| bad(error.to_string()))
}

fn servers(control: &Control, service: Option<&str>) -> Result<Vec<api::Server>, Fault> {
    let mut services = control.services();
    if let Some(name) = service {
        services.retain(|service| service.name == name);
        if services.is_empty() {
            return Err(Fault::new(FaultCode::NotFound, format!("no service is named {name:?}")));
        }
    }
    Ok(services.into_iter().flat_map(|service| service.servers).collect())
}

/// Tells of servers that go up and down, until the client goes or asks something else.
async fn watch_servers(
    control: &Control,
    service: Option<&str>,
    lines: &mut Lines,
    out: &mut Out,
) -> io::Result<Result<(), Fault>> {
    let Some(health) = &control.about().health else {
        return Ok(Err(Fault::new(FaultCode::NotSupported, "this gateway checks nothing")));
    };
    if let Err(fault) = servers(control, service) {
        return Ok(Err(fault));
    }
    let mut told = health.watch();
    let mut shown = 0;
    out.started();
    loop {
        out.flush().await?;
        let next = tokio::select! {
            next = told.recv() => next,
            over = lines.wait() => {
                over?;
                out.ok(&api::Shown { shown });
                return Ok(Ok(()));
            }
        };
        match next {
            Ok(event) if service.is_none_or(|service| service == event.service) => {
                out.item(&*event);
                shown += 1;
            }
            Ok(_) => {}
            Err(RecvError::Lagged(lost)) => out.lost(lost),
            Err(RecvError::Closed) => {
                out.ok(&api::Shown { shown });
                return Ok(Ok(()));
            }
        }
    }
}

/// Tells events until the client goes or asks something else.
async fn watch(control: &Arc<Control>, filter: &FlowFilter, lines: &mut Lines, out: &mut Out) -> io::Result<()> {
    let mut watcher = control.watch();
    let mut shown = 0;
    out.started();
    loop {
        out.flush().await?;
        let first = tokio::select! {
            told = watcher.events.recv() => told,
            over = lines.wait() => {
                over?;
                out.ok(&api::Shown { shown });
                return Ok(());
            }
        };
        shown += tell(first, filter, out);
        for _ in 1..EVENTS_PER_WRITE {
            match watcher.events.try_recv() {
                Ok(told) => shown += tell(Ok(told), filter, out),
                Err(TryRecvError::Lagged(lost)) => out.lost(lost),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
    }
}

/// Returns how many items that made.
fn tell(told: Result<Arc<Told>, RecvError>, filter: &FlowFilter, out: &mut Out) -> u64 {
    match told.as_deref() {
        Ok(Told::Event { event, shown }) if filter.matches(&event.flow) => {
            out.item(shown);
            return 1;
        }
        Ok(Told::Lost(lost)) | Err(RecvError::Lagged(lost)) => out.lost(*lost),
        // The sender belongs to `Control`, which is held for as long as a client is served.
        Ok(Told::Event { .. }) | Err(RecvError::Closed) => {}
    }
    0
}

async fn delete(control: &Control, filter: &api::Filter) -> Result<u64, Fault> {
    if *filter == api::Filter::default() {
        let message = "the filter is empty; conntrack.flush deletes every flow";
        return Err(Fault::new(FaultCode::BadRequest, message));
    }
    let filter = view::filter(&control.gateway().snapshot(), filter)?;
    Ok(delete_all(control, &filter).await)
}

/// Ends the flows that match in every shard, and says how many that were. A slice of the table per lock hold, and
/// other tasks in between: events are pumped while a large table is emptied.
async fn delete_all(control: &Control, filter: &FlowFilter) -> u64 {
    let mut deleted = 0;
    for shard in control.gateway().shards() {
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let command = Command::Delete { filter: filter.clone(), cursor: from };
            let outcome = {
                let mut engine = shard.lock();
                let outcome = engine.apply(control.gateway().now(), command);
                // A worker that waits goes first, before the next slice.
                MutexGuard::unlock_fair(engine);
                outcome
            };
            cursor = match outcome {
                Outcome::Deleted { count, next } => {
                    deleted += count;
                    next
                }
                Outcome::Done | Outcome::NotProbed(_) => None,
            };
            tokio::task::yield_now().await;
        }
    }
    deleted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_survive_the_way_over_the_wire() {
        for op in api::OPS {
            let filter = serde_json::json!({ "proto": "tcp", "sport": 1 });
            let mut fields = serde_json::json!({ "v": 1, "op": op });
            match *op {
                "conntrack.delete" => fields["filter"] = filter,
                "server.drain" => {
                    for (key, value) in [("service", "web"), ("server", "a"), ("deadline", "5m"), ("then", "rst")] {
                        fields[key] = value.into();
                    }
                }
                "edit" => fields["edits"] = serde_json::json!([{ "edit": "service.remove", "service": "web" }]),
                "explain" => {
                    for (key, value) in [("proto", "tcp"), ("src", "192.0.2.1"), ("dst", "192.0.2.2")] {
                        fields[key] = value.into();
                    }
                }
                _ => {}
            }
            let request = parse(fields.to_string().as_bytes()).unwrap_or_else(|fault| panic!("{op}: {fault}"));
            let mut again = serde_json::to_value(&request).unwrap();
            assert_eq!(again["op"], *op);
            again["v"] = 1.into();
            assert_eq!(parse(again.to_string().as_bytes()), Ok(request));
        }
    }

    // The document and the daemon speak of the same operations, and its requests are understood.
    #[test]
    fn every_request_in_the_documentation_is_one() {
        let document = include_str!("../../../docs/CONTROL-API.md");
        let requests: Vec<&str> = document.lines().filter_map(|line| line.strip_prefix("→ ")).collect();
        for op in api::OPS {
            assert!(document.contains(&format!("\n| `{op}` |")), "{op} is not in the table");
            let example = format!("{{\"v\":1,\"op\":\"{op}\"");
            assert!(requests.iter().any(|request| request.starts_with(&example)), "{op} has no example");
        }
        for request in requests {
            assert!(parse(request.as_bytes()).is_ok(), "{request}: {:?}", parse(request.as_bytes()));
        }
    }

    fn rubbish() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            proptest::sample::select(api::OPS).prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            let key = prop_oneof![
                ".{0,4}",
                "(v|op|filter|proto|src|dst|sport|state|server|service|config|inside|outside|masquerade)"
            ];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::hash_map(key, inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(line: Vec<u8>) {
            let _ = parse(&line);
        }

        // What parses goes on to the filter, which must not panic either.
        #[test]
        fn no_json_makes_a_request_panic(
            mut value in rubbish(),
            op in proptest::sample::select(api::OPS),
            filter in rubbish(),
        ) {
            let _ = parse(value.to_string().as_bytes());
            if let Value::Object(fields) = &mut value {
                fields.insert("v".to_owned(), api::VERSION.into());
                fields.insert("op".to_owned(), op.into());
                fields.insert("filter".to_owned(), filter);
                let snapshot = crate::service::Snapshot::default();
                match parse(value.to_string().as_bytes()) {
                    Ok(Request::ConntrackList { filter }) => drop(view::filter(&snapshot, &filter)),
                    Ok(Request::NatMappings { filter }) => drop(view::MappingFilter::new(&snapshot, &filter)),
                    _ => {}
                }
            }
        }

        #[test]
        fn no_words_make_a_filter_panic(
            word in "\\PC{0,20}",
            number in "[0-9a-f:./]{0,24}",
        ) {
            let filter = api::Filter {
                proto: Some(word.clone()),
                src: Some(number.clone()),
                dst: Some(word.clone()),
                state: Some(word.clone()),
                server: Some(number),
                service: Some(word.clone()),
                method: Some(word),
                ..api::Filter::default()
            };
            prop_assert!(view::filter(&crate::service::Snapshot::default(), &filter).is_err());
        }
    }
}
