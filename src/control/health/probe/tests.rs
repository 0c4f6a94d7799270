//! Every probe against servers of this process: good ones, and bad ones of every kind.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::*;
use crate::control::config::Config;
use crate::control::health::transport::Host;

/// Much less than any of these servers needs for its last byte, much more than an honest one does.
const LIMIT: Duration = Duration::from_millis(700);

/// The check that a configuration file would have.
fn check(keys: &str) -> Arc<CheckSpec> {
    let text = format!("[[service]]\nname = \"a\"\nlisten = \"203.0.113.10:80\"\nserver = []\ncheck = {{ {keys} }}\n");
    let config = Config::parse(std::path::Path::new("x.toml"), &text).unwrap_or_else(|errors| panic!("{errors}"));
    config.services[0].health.check.clone().expect("a check").value
}

/// `None`: it is still waiting when the time is up.
async fn ask(keys: &str, address: SocketAddr) -> Option<Outcome> {
    let probe = build(&check(keys)).unwrap_or_else(|error| panic!("{error}"));
    let asked = Asked { target: Target { address, through: None }, whose: None };
    let outcome = tokio::time::timeout(LIMIT, probe.ask(&asked, &Host)).await.ok();
    outcome.or_else(|| probe.silence().map(Ok))
}

/// A server on a port of its own that deals with each connection by `serve`.
async fn tcp<F: Future<Output = ()> + Send + 'static>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// A server that says `first`, then answers each line with the next of `replies`, and closes.
async fn talker(first: &'static [u8], replies: &'static [&'static str]) -> SocketAddr {
    tcp(move |mut stream| async move {
        let _ = stream.write_all(first).await;
        for reply in replies {
            let mut byte = [0];
            while !matches!(stream.read(&mut byte).await, Ok(0) | Err(_)) && byte != [b'\n'] {}
            let _ = stream.write_all(reply.as_bytes()).await;
        }
        // What the client still says must not become a RST before it has read the last reply.
        let mut rest = [0; 512];
        let _ = tokio::time::timeout(LIMIT / 10, stream.read(&mut rest)).await;
    })
    .await
}

/// A server that reads the head of a request, and answers with these bytes.
async fn http(response: &'static str) -> SocketAddr {
    tcp(move |mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read_exact(&mut byte).await.is_err() {
                return;
            }
            head.push(byte[0]);
        }
        let _ = stream.write_all(response.as_bytes()).await;
        let _ = stream.shutdown().await;
        let _ = stream.read(&mut [0; 16]).await;
    })
    .await
}

fn why(outcome: Option<Outcome>) -> String {
    match outcome {
        None => "silence".to_owned(),
        Some(Ok(good)) => format!("good: {}", good.said),
        Some(Err(Bad::Server(why))) => why,
        Some(Err(Bad::Ours(why))) => format!("ours: {why}"),
    }
}

/// For every probe over TCP: servers that are of no use, each of which is found out in bounded time.
#[tokio::test]
async fn useless_servers_are_bad_and_bounded() {
    let silent = tcp(|stream| async move {
        let _stream = stream;
        std::future::pending().await
    });
    let closing = tcp(|_| async {});
    // A byte now and then, for ever.
    let slow = tcp(|mut stream| async move {
        while stream.write_all(b"2").await.is_ok() {
            tokio::time::sleep(LIMIT / 20).await;
        }
    });
    // As fast as it can, for ever.
    let flood = tcp(|mut stream| async move { while stream.write_all(&[0xff; 4096]).await.is_ok() {} });
    let text = tcp(|mut stream| async move {
        while stream.write_all(b"SSH-2.0-x\r\n\r\nHTTP/9.9 999\r\n").await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    let closed = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() };
    let (silent, closing, slow, flood, text) = tokio::join!(silent, closing, slow, flood, text);
    let kinds = [
        r#"type = "http""#,
        r#"type = "https""#,
        r#"type = "smtp""#,
        r#"type = "ftp", user = "a", password = "b""#,
        r#"type = "nntp""#,
        r#"type = "dns", transport = "tcp""#,
    ];
    for keys in kinds {
        for (name, server) in [
            ("silent", silent),
            ("closing", closing),
            ("slow", slow),
            ("flood", flood),
            ("text", text),
            ("closed", closed),
        ] {
            let began = Instant::now();
            let outcome = ask(keys, server).await;
            assert!(!matches!(outcome, Some(Ok(_))), "{keys}: {name}: {}", why(outcome));
            assert!(!matches!(outcome, Some(Err(Bad::Ours(_)))), "{keys}: {name}: {}", why(outcome));
            assert!(began.elapsed() < LIMIT * 2, "{keys}: {name}");
        }
    }
    assert_eq!(why(ask(r#"type = "tcp""#, closed).await), "connection refused");
    assert_eq!(why(ask(r#"type = "tcp""#, silent).await), "good: connected");
}

#[tokio::test]
async fn http_statuses_bodies_and_digests() {
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let rows: &[(&str, &str, &str)] = &[
        (OK, "", "good: status 200"),
        (OK, r#", expect = [401, "500-599"]"#, "status 200, not 401, 500-599"),
        ("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", r#", expect = [401]"#, "good: status 401"),
        ("HTTP/1.1 503 No\r\n\r\n", "", "status 503, not 200-299"),
        (OK, r#", body = "^h.l+o$""#, "good: status 200"),
        (OK, r#", body = "world""#, "the pattern is not in the body"),
        (OK, r#", digest = "5d41402abc4b2a76b9719d911017c592""#, "good: status 200"),
        (OK, r#", digest = "5d41402abc4b2a76b9719d911017c593""#, "the body has another digest"),
        ("HTTP/1.1 200 OK\r\n\r\nhello", r#", digest = "5d41402abc4b2a76b9719d911017c592""#, "good: status 200"),
        ("HTTP/1.0 204 Nothing\r\n\r\n", r#", version = "1.0", method = "HEAD""#, "good: status 204"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", "", "closed before the answer was complete"),
        ("HTTP/1.1 2", "", "closed before the answer was complete"),
    ];
    for (response, keys, expected) in rows {
        let server = http(response).await;
        assert_eq!(why(ask(&format!("type = \"http\"{keys}"), server).await), *expected, "{response:?} {keys}");
    }
    // Of a large body the first 64 KiB.
    for (before, expected) in [((64 << 10) - 5, "good: status 200"), ((64 << 10) - 4, "the pattern is not in the body")]
    {
        let body = format!("HTTP/1.1 200 OK\r\n\r\n{}hello{}", "x".repeat(before), "x".repeat(100_000));
        let server = http(Box::leak(body.into_boxed_str())).await;
        assert_eq!(why(ask(r#"type = "http", body = "hello""#, server).await), expected, "{before}");
    }
    let garbage = http("220 mail ESMTP\r\n").await;
    assert!(why(ask(r#"type = "http""#, garbage).await).starts_with("no HTTP: "));
}

#[tokio::test]
async fn the_request_is_as_configured() {
    let (sender, mut heads) = tokio::sync::mpsc::unbounded_channel();
    let server = tcp(move |mut stream| {
        let sender = sender.clone();
        async move {
            let mut head = vec![0; 1000];
            let size = stream.read(&mut head).await.unwrap_or(0);
            let _ = sender.send(String::from_utf8_lossy(&head[..size]).to_lowercase());
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    })
    .await;
    ask(r#"type = "http", path = "/a?b=%20", method = "OPTIONS", host = "www.example.org", version = "1.0""#, server)
        .await;
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with("options /a?b=%20 http/1.0\r\nhost: www.example.org\r\nuser-agent: gatun/"), "{head}");
    ask(r#"type = "http""#, server).await;
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with(&format!("get / http/1.1\r\nhost: {server}\r\n")), "{head}");
    assert!(head.contains("connection: close\r\n"), "{head}");
}

fn tls_file(name: &str) -> String {
    format!("{}/tests/support/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A server with the certificate of `server.test` that answers with the name it was asked for.
async fn https(wants_certificate: bool) -> SocketAddr {
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let read = |name: &str| CertificateDer::from_pem_file(tls_file(name)).unwrap();
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = if wants_certificate {
        let mut roots = RootCertStore::empty();
        roots.add(read("ca.pem")).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::from_pem_file(tls_file("server.key")).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![read("server.pem")], key).unwrap()));
    tcp(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let name = stream.get_ref().1.server_name().unwrap_or("nobody").to_owned();
            let _ = stream.read(&mut [0; 1000]).await;
            let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            let _ = stream.write_all(response.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

#[tokio::test]
async fn https_names_and_certificates() {
    let (open, closed) = (https(false).await, https(true).await);
    let (ca, other) = (tls_file("ca.pem"), tls_file("client.pem"));
    let client = format!(r#"certificate = "{}", key = "{}""#, tls_file("client.pem"), tls_file("client.key"));
    let good = "good: status 200";
    let rows = [
        (open, String::new(), good),
        (open, r#"sni = "server.test", body = "^server.test$""#.to_owned(), good),
        (open, r#"host = "server.test:8443", body = "^server.test$""#.to_owned(), good),
        (open, r#"body = "^nobody$""#.to_owned(), good),
        (open, format!(r#"sni = "server.test", ca = "{ca}""#), good),
        (open, format!(r#"sni = "other.test", ca = "{ca}""#), "TLS: "),
        (open, format!(r#"ca = "{ca}""#), "TLS: "),
        (open, format!(r#"sni = "server.test", ca = "{other}""#), "TLS: "),
        (closed, client, good),
        (closed, String::new(), "TLS: "),
    ];
    for (server, keys, expected) in rows {
        let comma = if keys.is_empty() { "" } else { ", " };
        let said = why(ask(&format!("type = \"https\"{comma}{keys}"), server).await);
        assert!(said.starts_with(expected), "{keys}: {said}");
    }
    let plain = http("HTTP/1.1 200 OK\r\n\r\n").await;
    assert!(!why(ask(r#"type = "https""#, plain).await).starts_with("good"));
    let missing = build(&check(r#"type = "https", ca = "/nonexistent/ca.pem""#)).err().expect("no such file");
    assert!(missing.starts_with("/nonexistent/ca.pem: "), "{missing}");
    let empty = build(&check(&format!(r#"type = "https", ca = "{}""#, tls_file("README.md")))).err().expect("no PEM");
    assert!(empty.contains("no certificate in PEM form"), "{empty}");
}

#[tokio::test]
async fn greetings_and_logins() {
    let login = |kind: &str| format!(r#"type = "{kind}", user = "probe", password = "secret""#);
    let rows: &[(&[u8], &[&str], &str, &str)] = &[
        (b"220 mail ESMTP\r\n", &["250-mail\r\n250 SIZE\r\n", "221 bye\r\n"], "smtp", "good: \"220 mail ESMTP\""),
        (b"220 old\r\n", &["502 what?\r\n", "250 old\r\n"], "smtp", "good: \"220 old\""),
        (b"220 old\r\n", &["502 what?\r\n", "550 no\r\n"], "smtp", "the reply to HELO is \"550 no\", not 250"),
        (b"554 no\r\n", &[], "smtp", "the greeting is \"554 no\", not 220"),
        (b"220 ftp\r\n", &["221 bye\r\n"], "ftp", "good: \"220 ftp\""),
        (b"220 ftp\r\n", &["331 password?\r\n", "230 welcome\r\n"], "ftp+", "good: \"230 welcome\""),
        (b"220 ftp\r\n", &["331 password?\r\n", "530 no\r\n"], "ftp+", "the reply to the login is \"530 no\", not 230"),
        (b"220 ftp\r\n", &["230 welcome\r\n"], "ftp+", "good: \"230 welcome\""),
        (b"421 too many\r\n", &[], "ftp", "the greeting is \"421 too many\", not 220"),
        (b"201 read\r\n", &[], "nntp", "good: \"201 read\""),
        (b"400 no\r\n", &[], "nntp", "the greeting is \"400 no\", not 200-201"),
        (b"200 post\r\n", &["381 more\r\n", "281 ok\r\n"], "nntp+", "good: \"281 ok\""),
        (b"200 post\r\n", &["381 more\r\n", "481 no\r\n"], "nntp+", "the reply to the login is \"481 no\", not 281"),
        (b"220 half", &[], "ftp", "closed before the answer was complete"),
    ];
    for (first, replies, kind, expected) in rows {
        let server = talker(first, replies).await;
        let keys = match kind.strip_suffix('+') {
            Some(kind) => login(kind),
            None => format!("type = \"{kind}\""),
        };
        assert_eq!(why(ask(&keys, server).await), *expected, "{kind} {replies:?}");
    }
}

/// A UDP server that answers each datagram with what `answer` makes of it.
async fn udp(answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((size, from)) = socket.recv_from(&mut buffer).await {
            for answer in answer(&buffer[..size]) {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    });
    address
}

#[tokio::test]
async fn datagrams_and_their_answers() {
    let echo = udp(|asked| vec![asked.to_vec()]).await;
    let silent = udp(|_| Vec::new()).await;
    let closed = { UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() };
    let rows = [
        (echo, r#"payload = "hex:00 ff 0a", expect = "hex:00ff""#, "good: answered, 3 bytes"),
        (echo, r#"payload = "PING", expect = "regex:^P.NG$""#, "good: answered, 4 bytes"),
        (echo, r#"payload = "PING", expect = "any""#, "good: answered, 4 bytes"),
        (echo, r#"payload = "PING", expect = "PONG""#, "another answer than expected: \"PING\""),
        (echo, r#"payload = "text:hex:00", expect = "text:hex:""#, "good: answered, 6 bytes"),
        (silent, r#"payload = "PING""#, "good: no ICMP error"),
        (silent, r#"payload = "PING", expect = "any""#, "silence"),
        (closed, r#"payload = "PING""#, "connection refused"),
        (closed, r#"payload = "PING", expect = "any""#, "connection refused"),
    ];
    for (server, keys, expected) in rows {
        assert_eq!(why(ask(&format!("type = \"udp\", {keys}"), server).await), expected, "{keys}");
    }
}

/// The response to a query, with an address.
fn dns_answer(query: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut message = Message::from_vec(query).unwrap().into_response();
    message.metadata.response_code = code;
    let name = message.queries[0].name.clone();
    message.add_answer(Record::from_rdata(name, 60, RData::A("192.0.2.1".parse().unwrap())));
    message.to_vec().unwrap()
}

#[tokio::test]
async fn dns_responses() {
    let good = udp(|query| vec![dns_answer(query, ResponseCode::NoError)]).await;
    let refusing = udp(|query| vec![dns_answer(query, ResponseCode::Refused)]).await;
    // Another's answer, garbage, and the query itself come first.
    let noisy = udp(|query| {
        let mut other = dns_answer(query, ResponseCode::ServFail);
        other[0] ^= 0xff;
        vec![other, vec![0xff; 300], Vec::new(), query.to_vec(), dns_answer(query, ResponseCode::NoError)]
    })
    .await;
    let garbage = udp(|query| vec![[&query[..2], &[0x80; 500]].concat()]).await;
    let by_tcp = tcp(|mut stream| async move {
        let Ok(size) = stream.read_u16().await else { return };
        let mut query = vec![0; usize::from(size)];
        let _ = stream.read_exact(&mut query).await;
        let answer = dns_answer(&query, ResponseCode::NoError);
        let _ = stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat()).await;
    })
    .await;
    let rows = [
        (good, "", "good: NoError, 1 records"),
        (good, r#", name = "www.test", query = "A", answer = ["192.0.2.1"]"#, "good: NoError, 1 records"),
        (
            good,
            r#", name = "www.test", query = "a", answer = ["192.0.2.1", "2001:db8::1"]"#,
            "2001:db8::1 is not in the answer",
        ),
        (good, r#", rcode = "nxdomain""#, "the response is NoError, not NXDomain"),
        (refusing, "", "the response is Refused, not NoError"),
        (refusing, r#", rcode = "refused""#, "good: Refused, 1 records"),
        (noisy, "", "good: NoError, 1 records"),
        (garbage, "", "silence"),
        (by_tcp, r#", transport = "tcp""#, "good: NoError, 1 records"),
    ];
    for (server, keys, expected) in rows {
        assert_eq!(why(ask(&format!("type = \"dns\"{keys}"), server).await), expected, "{keys}");
    }
    let flood = udp(|query| vec![query.to_vec(); 40]).await;
    assert_eq!(why(ask(r#"type = "dns""#, flood).await), "datagrams that are no response to the query");
}

#[tokio::test]
async fn an_echo_is_answered() {
    for ip in ["127.0.0.1", "::1"] {
        let ip: IpAddr = ip.parse().unwrap();
        match ask(r#"type = "ping""#, SocketAddr::new(ip, 0)).await {
            // Without a privilege and without a ping socket, as some build machines have it.
            Some(Err(Bad::Ours(why))) => assert!(why.contains("CAP_NET_RAW") || ip.is_ipv6(), "{why}"),
            outcome => assert_eq!(why(outcome), "good: answered"),
        }
    }
}

#[tokio::test]
async fn programs_and_their_codes() {
    let address = "10.20.0.11:8080".parse().unwrap();
    let environment = "test $GATUN_ADDRESS:$GATUN_PORT = 10.20.0.11:8080";
    let rows = [
        (environment, false, "good: exit code 0", None),
        ("exit 1", true, "exit code 1", None),
        ("exit 12", false, "exit code 12", None),
        ("exit 12", true, "good: exit code 12", Some(10)),
        ("exit 2", true, "good: exit code 2", Some(0)),
        ("kill -9 $$", true, "it was killed", None),
        ("sleep 10", false, "silence", None),
    ];
    for (line, sets_weight, expected, weight) in rows {
        let outcome = ask(&format!("type = \"exec\", command = {line:?}, weight = {sets_weight}"), address).await;
        let found = outcome.as_ref().and_then(|outcome| outcome.as_ref().ok()?.weight);
        assert_eq!((why(outcome).as_str(), found), (expected, weight), "{line}");
    }
    let missing = ask(r#"type = "exec", command = ["/nonexistent/check"]"#, address).await;
    assert!(why(missing).starts_with("ours: /nonexistent/check: "), "it is not the server's fault");
}

#[test]
fn what_a_server_says_cannot_spoil_a_log() {
    assert_eq!(quoted(b"a\x1b[2J\nb\r\n").to_string(), "\"a\u{fffd}[2J\u{fffd}b\"");
    assert_eq!(quoted(&[b'x'; 200]).to_string(), format!("\"{}\"…", "x".repeat(80)));
}
