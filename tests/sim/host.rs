//! A host: smoltcp's stack over a queue of packets, and the programs that run on it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::network::{POOL, is_client};
use gatun::service::ProxyProtocol;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

pub const WEB: u16 = 8080;
pub const ECHO: u16 = 5353;
/// How long a client waits for an answer before it asks again, in microseconds.
const ASK_AGAIN: i64 = 1_000_000;
/// How long it waits before it connects again.
const AGAIN: i64 = 50_000;

thread_local! {
    /// Milliseconds, for timestamps.
    static CLOCK: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

pub struct Host {
    pub addresses: Vec<IpAddr>,
    interface: Interface,
    sockets: SocketSet<'static>,
    queue: Queue,
    programs: Vec<Program>,
    /// Connections that were served here to their end.
    pub served: usize,
    /// Connections may break; then they are tried again.
    pub persists: bool,
    /// Connections begin with a header of the PROXY protocol.
    pub is_told: Option<ProxyProtocol>,
}

/// What runs on a host.
enum Program {
    /// Takes a connection, reads the request, answers with its sum and more, closes. Just one: smoltcp gives a
    /// SYN that comes twice to the first socket that listens, even when a later one has the connection; so used ones must
    /// stand before all that listen.
    Web { socket: SocketHandle, got: Vec<u8>, is_told: bool, answer: Option<(Vec<u8>, usize)> },
    /// Sends each datagram back, backwards.
    Echo { socket: SocketHandle },
    /// Connects, sends `request`, and reads until it has the answer.
    Get {
        socket: SocketHandle,
        at: i64,
        local: u16,
        to: SocketAddr,
        request: Vec<u8>,
        sent: usize,
        got: Vec<u8>,
        expected: Vec<u8>,
        state: Progress,
    },
    /// Sends datagrams, each until it is answered.
    Ask { socket: SocketHandle, at: i64, to: SocketAddr, left: u32, asked: Option<i64> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Connected,
    Done,
}

impl Host {
    pub fn new(addresses: &[&str], seed: u64) -> Host {
        let mut queue = Queue::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut queue, Instant::ZERO);
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().expect("an address")).collect();
        interface.update_ip_addrs(|list| {
            for address in &addresses {
                // Everything is on the link, as far as the host knows.
                list.push(IpCidr::new((*address).into(), 0)).expect("room for two");
            }
        });
        let sockets = SocketSet::new(Vec::new());
        Host { addresses, interface, sockets, queue, programs: Vec::new(), served: 0, persists: false, is_told: None }
    }

    /// Connections of which a server has read the header.
    pub fn told(&self) -> usize {
        self.programs.iter().filter(|program| matches!(program, Program::Web { is_told: true, .. })).count()
    }

    pub fn serve(&mut self, connections: usize) {
        for _ in 0..connections {
            let socket = self.sockets.add(tcp_socket());
            self.programs.push(Program::Web { socket, got: Vec::new(), is_told: false, answer: None });
        }
        let socket = self.sockets.add(udp_socket(ECHO));
        self.programs.push(Program::Echo { socket });
    }

    /// From `at` microseconds on: send `len` bytes, and check the answer.
    pub fn get(&mut self, at: i64, local: u16, to: SocketAddr, len: usize) {
        let socket = self.sockets.add(tcp_socket());
        let mut request = (len as u32).to_be_bytes().to_vec();
        request.extend((0..len).map(|n| (n * 31 + n / 251 + usize::from(local)) as u8));
        let (expected, state) = (answer_to(&request), Progress::Waiting);
        self.programs.push(Program::Get { socket, at, local, to, request, sent: 0, got: Vec::new(), expected, state });
    }

    pub fn ask(&mut self, at: i64, local: u16, to: SocketAddr, questions: u32) {
        let socket = self.sockets.add(udp_socket(local));
        self.programs.push(Program::Ask { socket, at, to, left: questions, asked: None });
    }

    /// Before anything is sent: connections get so much room, and timestamps by a server's clock or a client's.
    pub fn prepare(&mut self, room: usize, has_clock: Option<bool>) {
        for program in &mut self.programs {
            let (Program::Web { socket, .. } | Program::Get { socket, .. }) = program else { continue };
            self.sockets.remove(*socket);
            let buffer = || tcp::SocketBuffer::new(vec![0; room]);
            let mut with_room = tcp::Socket::new(buffer(), buffer());
            with_room.set_tsval_generator(has_clock.map(|is_server| match is_server {
                // It wraps within a few seconds.
                true => (|| CLOCK.get().wrapping_add(u32::MAX - 3000)) as fn() -> u32,
                false => || CLOCK.get().wrapping_mul(10),
            }));
            *socket = self.sockets.add(with_room);
        }
    }

    pub fn receive(&mut self, packet: Vec<u8>) {
        self.queue.arrived.push_back(packet);
    }

    /// Lets stack and programs do what they can at `now`; returns what is sent.
    pub fn poll(&mut self, now: i64) -> Vec<Vec<u8>> {
        let time = Instant::from_micros(now);
        CLOCK.set((now / 1000) as u32);
        loop {
            self.interface.poll(time, &mut self.queue, &mut self.sockets);
            let mut busy = false;
            for program in &mut self.programs {
                busy |= program.retry(now, &mut self.sockets, self.persists);
                busy |= program.run(now, &mut self.interface, &mut self.sockets, (&mut self.served, self.is_told));
            }
            if !busy {
                break;
            }
        }
        self.queue.sent.drain(..).collect()
    }

    /// When [`Host::poll`] has something to do, if no packet comes.
    pub fn poll_at(&mut self, now: i64) -> Option<i64> {
        let stack = self.interface.poll_at(Instant::from_micros(now), &self.sockets).map(|at| at.total_micros());
        let programs = self.programs.iter().filter_map(|program| match program {
            Program::Get { at, state: Progress::Waiting, .. } => Some(*at),
            Program::Ask { at, left, asked, .. } if *left > 0 => Some(asked.map_or(*at, |asked| asked + ASK_AGAIN)),
            _ => None,
        });
        stack.into_iter().chain(programs).min()
    }

    pub fn is_done(&self) -> bool {
        self.programs.iter().all(|program| match program {
            Program::Get { state, .. } => *state == Progress::Done,
            Program::Ask { left, .. } => *left == 0,
            _ => true,
        })
    }
}

impl Program {
    /// A connection that was reset is begun anew, from another port.
    fn retry(&mut self, now: i64, sockets: &mut SocketSet<'static>, persists: bool) -> bool {
        let Program::Get { socket, at, local, sent, got, expected, state, .. } = self else { return false };
        let socket = sockets.get_mut::<tcp::Socket<'_>>(*socket);
        // What has come is read first: it may be all.
        take(socket, got);
        // Who only waits for an answer asks now and then: a RST may be lost as anything else.
        socket.set_keep_alive(persists.then_some(smoltcp::time::Duration::from_secs(5)));
        if !persists || *state != Progress::Connected || socket.is_open() || got.len() >= expected.len() {
            return false;
        }
        (*at, *local, *sent, *state) = (now + AGAIN, *local + 1000, 0, Progress::Waiting);
        got.clear();
        true
    }

    /// Does one round; whether there may be more to do at once.
    fn run(
        &mut self,
        now: i64,
        interface: &mut Interface,
        sockets: &mut SocketSet<'static>,
        (served, version): (&mut usize, Option<ProxyProtocol>),
    ) -> bool {
        match self {
            Program::Web { socket, got, is_told, answer } => {
                let socket = sockets.get_mut::<tcp::Socket<'_>>(*socket);
                if !socket.is_open() && answer.is_none() {
                    got.clear();
                    *is_told = false;
                    socket.listen(WEB).expect("a closed socket can listen");
                    return true;
                }
                let mut busy = take(socket, got);
                if let Some(version) = version
                    && !*is_told
                {
                    let (Some(local), Some(remote)) = (socket.local_endpoint(), socket.remote_endpoint()) else {
                        return busy;
                    };
                    match take_header(version, got) {
                        Some(client) => {
                            let seen: IpAddr = remote.addr.into();
                            // By fullnat the header alone tells.
                            let is_translated = POOL.contains(&seen.to_string().as_str()) && is_client(client);
                            assert!((client == seen || is_translated) && local.port == WEB, "who is {client}, {seen}");
                        }
                        None => return busy,
                    }
                    *is_told = true;
                }
                if answer.is_none() && is_whole(got) {
                    *answer = Some((answer_to(got), 0));
                    *served += 1;
                }
                if let Some((bytes, sent)) = answer
                    && *sent < bytes.len()
                    && socket.can_send()
                {
                    *sent += socket.send_slice(&bytes[*sent..]).expect("it can send");
                    busy = true;
                    if *sent == bytes.len() {
                        socket.close();
                    }
                }
                busy
            }
            Program::Echo { socket } => {
                let socket = sockets.get_mut::<udp::Socket<'_>>(*socket);
                let mut busy = false;
                while let Ok((data, from)) = socket.recv() {
                    let backwards: Vec<u8> = data.iter().rev().copied().collect();
                    // From the address that was asked; a full queue loses the answer, as it may.
                    let _ = socket.send_slice(&backwards, from);
                    busy = true;
                }
                busy
            }
            Program::Get { socket, at, local, to, request, sent, got, expected, state } => {
                let socket = sockets.get_mut::<tcp::Socket<'_>>(*socket);
                match state {
                    Progress::Waiting if now >= *at => {
                        socket.connect(interface.context(), *to, *local).expect("a free socket connects");
                        *state = Progress::Connected;
                        true
                    }
                    Progress::Connected => {
                        let mut busy = take(socket, got);
                        if *sent < request.len() && socket.can_send() {
                            *sent += socket.send_slice(&request[*sent..]).expect("it can send");
                            busy = true;
                        }
                        if got.len() >= expected.len() {
                            assert!(got == expected, "{local} to {to}: the answer is to something else");
                            socket.close();
                            *state = Progress::Done;
                            return true;
                        }
                        assert!(socket.is_open(), "{local} to {to}: the connection broke");
                        busy
                    }
                    _ => false,
                }
            }
            Program::Ask { socket, at, to, left, asked } => {
                if *left == 0 || now < *at {
                    return false;
                }
                let socket = sockets.get_mut::<udp::Socket<'_>>(*socket);
                let question: Vec<u8> = (0..*left as u8 + 40).map(|n| n ^ *left as u8).collect();
                while let Ok((data, from)) = socket.recv() {
                    assert_eq!(
                        SocketAddr::new(from.endpoint.addr.into(), from.endpoint.port),
                        *to,
                        "an answer from elsewhere"
                    );
                    // A late answer to an earlier question is none.
                    if data.iter().rev().eq(&question) {
                        (*left, *asked) = (*left - 1, None);
                        return true;
                    }
                }
                if asked.is_none_or(|at| now >= at + ASK_AGAIN) {
                    socket.send_slice(&question, *to).expect("room for one datagram");
                    *asked = Some(now);
                    return true;
                }
                false
            }
        }
    }
}

/// Reads what has come.
fn take(socket: &mut tcp::Socket<'_>, into: &mut Vec<u8>) -> bool {
    let before = into.len();
    while socket.can_recv() {
        let read = socket.recv(|data| {
            into.extend_from_slice(data);
            (data.len(), ())
        });
        if read.is_err() {
            break;
        }
    }
    into.len() > before
}

/// Takes the header off the front of what has come, once it is whole, and tells the client that it names. Panics on anything
/// else.
fn take_header(version: ProxyProtocol, got: &mut Vec<u8>) -> Option<IpAddr> {
    let (len, client, to_port) = match version {
        ProxyProtocol::V1 => {
            let len = got.windows(2).position(|end| end == b"\r\n")? + 2;
            let line = std::str::from_utf8(&got[..len]).expect("text").trim_end();
            let words: Vec<&str> = line.split(' ').collect();
            let [name, family, from, _, _, to_port] = words[..] else { panic!("no header: {line:?}") };
            let from: IpAddr = from.parse().expect("an address");
            assert_eq!((name, family), ("PROXY", if from.is_ipv4() { "TCP4" } else { "TCP6" }));
            (len, from, to_port.parse().expect("a port"))
        }
        ProxyProtocol::V2 => {
            let fixed: &[u8; 16] = got.first_chunk()?;
            assert_eq!(fixed[..13], *b"\r\n\r\n\0\r\nQUIT\n\x21", "no header");
            let len = 16 + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
            let is_v4 = fixed[13] == 0x11;
            let rest = got.get(16..len)?;
            let client = match is_v4 {
                true => IpAddr::from(*rest.first_chunk::<4>().expect("an address")),
                false => IpAddr::from(*rest.first_chunk::<16>().expect("an address")),
            };
            (len, client, u16::from_be_bytes([rest[rest.len() - 2], rest[rest.len() - 1]]))
        }
    };
    assert_eq!(to_port, 80, "the port that the client knows");
    got.drain(..len);
    Some(client)
}

/// A request begins with the length of what follows.
fn is_whole(request: &[u8]) -> bool {
    request.split_first_chunk().is_some_and(|(len, rest)| rest.len() >= u32::from_be_bytes(*len) as usize)
}

/// What a server sends back: the sum of the request, and a body that follows from it.
fn answer_to(request: &[u8]) -> Vec<u8> {
    // FNV-1a: nothing of the code under test.
    let add = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let sum = request.iter().fold(0xcbf2_9ce4_8422_2325, add);
    let len = 500 + (sum % 30_000) as usize;
    let mut answer = sum.to_be_bytes().to_vec();
    answer.extend((0..len).map(|n| (sum >> (n % 57)) as u8 ^ n as u8));
    answer
}

fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; 16 << 10]);
    tcp::Socket::new(buffer(), buffer())
}

fn udp_socket(port: u16) -> udp::Socket<'static> {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 32], vec![0; 8 << 10]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(port).expect("a port other than 0");
    socket
}

/// The host's end of its link.
#[derive(Default)]
struct Queue {
    arrived: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Arrived(Vec<u8>);
struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Queue {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Sent<'_>)> {
        Some((Arrived(self.arrived.pop_front()?), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}
