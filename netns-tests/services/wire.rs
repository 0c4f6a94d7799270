//! A client's side of the services' protocols: a connection, or a socket, and what is said on it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned};

/// How long a client waits for a connection or an answer.
const PATIENCE_TCP: Duration = Duration::from_secs(3);

/// A datagram that is lost stays so.
const PATIENCE_UDP: Duration = Duration::from_secs(1);

/// The name in the web servers' certificates.
pub const TLS_NAME: &str = "web.test";

/// How a client of a service talks to it.
#[derive(Clone)]
pub struct Protocol {
    pub name: &'static str,
    pub port: u16,
    pub udp: bool,
    pub tls: Option<Arc<ClientConfig>>,
    /// Asked from another address each time: of a service that keeps clients on their servers.
    pub roams: bool,
    /// What is said once, at the beginning of a connection.
    pub greet: fn(&mut Wire) -> Result<()>,
    /// One question; its answer says which server gave it. May be asked again on the same connection.
    pub ask: fn(&mut Wire) -> Result<String>,
}

impl Protocol {
    pub fn tcp(
        name: &'static str,
        port: u16,
        greet: fn(&mut Wire) -> Result<()>,
        ask: fn(&mut Wire) -> Result<String>,
    ) -> Protocol {
        Protocol { name, port, udp: false, tls: None, roams: false, greet, ask }
    }

    /// Connects, greets, asks once, and answers with the server's name. The port is the client's, known also of a
    /// connection that failed.
    pub fn ask_once(&self, from: Option<IpAddr>, to: IpAddr) -> (u16, Result<String>) {
        match Unconnected::new(self, from, to) {
            Ok(socket) => (socket.port, socket.connect(self).and_then(|mut wire| (self.ask)(&mut wire))),
            Err(error) => (0, Err(error)),
        }
    }

    /// Connects and greets.
    pub fn open(&self, from: Option<IpAddr>, to: IpAddr) -> Result<Wire> {
        Unconnected::new(self, from, to)?.connect(self)
    }
}

/// A protocol in which the server does not speak first.
pub fn no_greeting(_: &mut Wire) -> Result<()> {
    Ok(())
}

/// Bound first, so that its port is known whatever becomes of it.
struct Unconnected {
    socket: Socket,
    to: SocketAddr,
    port: u16,
}

impl Unconnected {
    fn new(protocol: &Protocol, from: Option<IpAddr>, to: IpAddr) -> Result<Unconnected> {
        let to = SocketAddr::new(to, protocol.port);
        let kind = if protocol.udp { Type::DGRAM } else { Type::STREAM };
        let socket = Socket::new(Domain::for_address(to), kind, None)?;
        let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        socket.bind(&SocketAddr::new(from.unwrap_or(any), 0).into())?;
        let port = socket.local_addr()?.as_socket().context("an IP address")?.port();
        Ok(Unconnected { socket, to, port })
    }

    fn connect(self, protocol: &Protocol) -> Result<Wire> {
        let port = self.port;
        let patience = if protocol.udp { PATIENCE_UDP } else { PATIENCE_TCP };
        self.socket.connect_timeout(&self.to.into(), patience).context("connect")?;
        self.socket.set_read_timeout(Some(patience))?;
        self.socket.set_write_timeout(Some(patience))?;
        let stream: Box<dyn Stream> = if protocol.udp {
            Box::new(Datagrams(self.socket.into()))
        } else {
            self.socket.set_tcp_nodelay(true)?;
            let stream: TcpStream = self.socket.into();
            match &protocol.tls {
                None => Box::new(stream),
                Some(config) => {
                    let connection = ClientConnection::new(config.clone(), TLS_NAME.try_into()?)?;
                    Box::new(StreamOwned::new(connection, stream))
                }
            }
        };
        let mut wire = Wire { stream: BufReader::new(stream), port, udp: protocol.udp, server: String::new() };
        (protocol.greet)(&mut wire).context("greeting")?;
        Ok(wire)
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connected UDP socket, one datagram a read and a write.
struct Datagrams(UdpSocket);

impl Read for Datagrams {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }
}

impl Write for Datagrams {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client's connection.
pub struct Wire {
    stream: BufReader<Box<dyn Stream>>,
    /// The client's port, by which the gateway's flow is found.
    pub port: u16,
    udp: bool,
    /// The name by which the server introduced itself, where it does so once.
    pub server: String,
}

impl Wire {
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(bytes)?;
        Ok(stream.flush()?)
    }

    /// A line without its end.
    pub fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        ensure!(line.ends_with(b"\n"), "the connection ended");
        Ok(String::from_utf8_lossy(&line).trim_end().to_string())
    }

    pub fn bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends a line, and reads the reply of SMTP, FTP and NNTP, which has to begin with `code`: its last line.
    pub fn command(&mut self, line: &str, code: &str) -> Result<String> {
        self.send(format!("{line}\r\n").as_bytes())?;
        self.reply(code).with_context(|| format!("after \"{line}\""))
    }

    /// Such a reply; of several lines all but the last one have a "-" behind the code.
    pub fn reply(&mut self, code: &str) -> Result<String> {
        loop {
            let line = self.line()?;
            ensure!(line.starts_with(code), "{code} was expected: {line}");
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line);
            }
        }
    }

    /// A GET of HTTP/1.1: the header's lines and the body.
    pub fn get(&mut self, target: &str) -> Result<(Vec<String>, String)> {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: {TLS_NAME}\r\n\r\n").as_bytes())?;
        let status = self.line()?;
        ensure!(status.starts_with("HTTP/1.1 200 "), "{status}");
        let mut header = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            header.push(line);
        }
        let length = field(&header, "content-length").context("no Content-Length")?.parse()?;
        let body = String::from_utf8(self.bytes(length)?)?;
        Ok((header, body))
    }

    /// A question about the TXT record of `whoami.test.`, and its only string.
    pub fn whoami(&mut self) -> Result<String> {
        // RFC 1035 section 4.1: the id, a query that desires recursion, one question; TXT, IN.
        let id = [self.port.to_be_bytes(), [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]].concat();
        let query = [&id[..], b"\x06whoami\x04test\0", &[0, 16, 0, 1]].concat();
        let answer = if self.udp {
            self.send(&query)?;
            let answer = self.stream.fill_buf()?.to_vec();
            self.stream.consume(answer.len());
            answer
        } else {
            // Section 4.2.2: over TCP the length goes before.
            self.send(&[&(query.len() as u16).to_be_bytes()[..], &query].concat())?;
            let length = self.bytes(2)?;
            self.bytes(usize::from(u16::from_be_bytes([length[0], length[1]])))?
        };
        ensure!(answer.len() > query.len() && answer[..2] == query[..2], "an answer to another question");
        ensure!(answer[3] & 15 == 0 && answer[6..8] == [0, 1], "RCODE {}: {answer:02x?}", answer[3] & 15);
        // The record is the last one: its name, type, class and TTL, the length of its data, that of the string.
        let text = answer.get(query.len() + 2 + 8 + 2 + 1..).context("a short answer")?;
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

/// Addresses of clients that have not been seen before.
#[derive(Clone, Default)]
pub struct Strangers(Arc<AtomicU16>);

impl Strangers {
    /// The networks that they are of, for IPv4 and for IPv6.
    pub const NETWORKS: [&str; 2] = ["198.18.0.0/16", "2001:db8:18::/64"];

    /// One of the family of `to`.
    pub fn next(&self, to: IpAddr) -> IpAddr {
        let n = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        let [high, low] = n.to_be_bytes();
        match to {
            IpAddr::V4(_) => Ipv4Addr::new(198, 18, high, low).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, n).into(),
        }
    }

    /// For a question of this protocol: a stranger's address, or whichever the client has.
    pub fn source(&self, protocol: &Protocol, to: IpAddr) -> Option<IpAddr> {
        protocol.roams.then(|| self.next(to))
    }
}

/// The value of a field in a header's lines.
pub fn field<'a>(header: &'a [String], name: &str) -> Option<&'a str> {
    header.iter().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}
