//! The socket device, seen from a guest that speaks packets and host programs that use streams.

mod streams;
mod threads;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::packet::Header;
use super::regs::*;
use super::*;
use crate::testing::{Bench, Driver};

const RX_BUFFER_BYTES: u32 = 4096;
const RX_BUFFERS: usize = 32;
/// Credit that the test guest gives.
const GUEST_BUF_ALLOC: u32 = 16 << 10;
const SERVICE: u32 = 1024;

type Accepted = Arc<Mutex<Vec<(u32, UnixStream)>>>;

/// What the guest got: a header and its payload.
type Packet = (Header, Vec<u8>);

/// A VM with a socket device and nothing else.
struct Vm {
    bench: Bench,
    driver: Driver,
    /// Addresses of receive buffers by head.
    buffers: Vec<(u16, u64)>,
    got: VecDeque<Packet>,
    accepted: Accepted,
    folder: tempfile::TempDir,
    fwd_cnt: u32,
}

fn device(folder: &tempfile::TempDir, accepted: &Accepted) -> Vsock {
    let path = folder.path().join("vsock");
    // A restored VM has a socket of its own.
    let path = if path.exists() {
        folder.path().join("vsock2")
    } else {
        path
    };
    let listener = UnixListener::bind(path).expect("bind");
    let accepted = accepted.clone();
    Vsock::new(VsockConfig {
        listener: Some(listener.into()),
        service_ports: vec![SERVICE],
        on_guest_connect: GuestConnectSink::new(move |port, stream| {
            accepted.lock().expect("lock").push((port, stream));
        }),
    })
    .expect("device")
}

impl Vm {
    fn new() -> Self {
        let mut vm = Self::without_buffers();
        vm.post_buffers(RX_BUFFERS);
        vm
    }

    fn without_buffers() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let accepted = Accepted::default();
        let mut bench = Bench::default();
        let mut driver = bench.add(device(&folder, &accepted));
        driver.start();
        for _ in 0..2 {
            let event = driver.output(4);
            driver.poke(event.gpa, &[0xff; 4]);
            driver.offer(EVENT, &[event]);
        }
        let got = VecDeque::new();
        Self {
            bench,
            driver,
            buffers: Vec::new(),
            got,
            accepted,
            folder,
            fwd_cnt: 0,
        }
    }

    fn post_buffers(&mut self, count: usize) {
        for _ in 0..count {
            let piece = self.driver.output(RX_BUFFER_BYTES);
            let head = self.driver.offer(RX, &[piece]);
            self.buffers.push((head, piece.gpa));
        }
        self.driver.kick(RX);
        self.run();
    }

    fn run(&mut self) {
        self.bench.run();
        while self.driver.used(TX).is_some() {}
        while let Some(used) = self.driver.used(RX) {
            let at = self.buffers.iter().position(|(head, _)| *head == used.head);
            let (_, gpa) = self.buffers.remove(at.expect("a buffer that was posted"));
            let bytes = self.driver.peek(gpa, used.len as usize);
            let (header, payload) = bytes.split_first_chunk().expect("a whole header");
            let header = Header::decode(header);
            assert_eq!(
                (header.dst_cid, payload.len()),
                (GUEST_CID, header.len as usize)
            );
            self.got.push_back((header, payload.to_vec()));
        }
    }

    /// Runs and returns the next packet, putting a buffer in the place of its own.
    fn next(&mut self) -> Option<Packet> {
        if self.got.is_empty() {
            self.run();
        }
        let packet = self.got.pop_front()?;
        self.post_buffers(1);
        Some(packet)
    }

    fn expect(&mut self, op: u16) -> Packet {
        let packet = self
            .next()
            .unwrap_or_else(|| panic!("no packet, expected op {op}"));
        assert_eq!(packet.0.op, op, "{packet:?}");
        packet
    }

    fn expect_nothing(&mut self) {
        self.run();
        assert_eq!(self.got.pop_front(), None);
    }

    fn send_raw(&mut self, header: Header, payload: &[u8]) {
        let header = self.driver.input(&header.encode());
        let mut pieces = vec![header];
        if !payload.is_empty() {
            pieces.push(self.driver.input(payload));
        }
        self.driver.offer(TX, &pieces);
        self.driver.kick(TX);
        self.run();
    }

    /// Sends as the guest's port `guest_port` to the host's port `host_port`.
    fn send(&mut self, ports: (u32, u32), op: u16, flags: u32, payload: &[u8]) {
        let (host_port, guest_port) = ports;
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len: payload.len() as u32,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: GUEST_BUF_ALLOC,
            fwd_cnt: self.fwd_cnt,
        };
        self.send_raw(header, payload);
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("vsock")
    }

    /// Connects a host program to guest port `port`, up to the request that the guest sees.
    fn connect(&mut self, port: u32) -> (UnixStream, (u32, u32)) {
        let mut client = UnixStream::connect(self.socket()).expect("connect");
        client.set_nonblocking(true).expect("nonblocking");
        client
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .expect("greet");
        let (request, _) = self.expect(OP_REQUEST);
        assert_eq!(request.dst_port, port);
        assert!(request.buf_alloc > 0);
        (client, (request.src_port, port))
    }

    /// A connection from a host program that the guest accepted.
    fn established(&mut self, port: u32) -> (UnixStream, (u32, u32)) {
        let (mut client, ports) = self.connect(port);
        self.send(ports, OP_RESPONSE, 0, &[]);
        assert_eq!(read(&mut client), format!("OK {}\n", ports.0).into_bytes());
        (client, ports)
    }

    /// A connection from guest port `port` to the service.
    fn service(&mut self, port: u32) -> (UnixStream, (u32, u32)) {
        let ports = (SERVICE, port);
        self.send(ports, OP_REQUEST, 0, &[]);
        self.expect(OP_RESPONSE);
        let (to, stream) = self
            .accepted
            .lock()
            .expect("lock")
            .pop()
            .expect("a connection");
        assert_eq!(to, SERVICE);
        stream.set_nonblocking(true).expect("nonblocking");
        (stream, ports)
    }

    fn connections(&mut self) -> usize {
        self.run();
        self.bench
            .lock()
            .device_mut::<Vsock>(0)
            .expect("vsock")
            .connections()
    }
}

/// Reads what is there.
fn read(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        Err(error) if error.kind() == ErrorKind::WouldBlock => bytes,
        Err(error) => panic!("cannot read: {error}"),
    }
}

fn is_closed(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0; 16]), Ok(0))
}

#[test]
fn the_guest_has_its_fixed_address() {
    let vm = Vm::new();
    assert_eq!(u64::from_le_bytes(vm.driver.config(0)), GUEST_CID);
}

#[test]
fn a_host_program_reaches_the_guest() {
    let mut vm = Vm::new();
    let (mut client, ports) = vm.established(1025);
    client.write_all(b"hello guest").expect("write");
    assert_eq!(vm.expect(OP_RW).1, b"hello guest");
    vm.send(ports, OP_RW, 0, b"hello host");
    assert_eq!(read(&mut client), b"hello host");
    assert_eq!(vm.connections(), 1);
}

#[test]
fn bytes_sent_with_the_greeting_wait_for_the_guest() {
    let mut vm = Vm::new();
    let (mut client, ports) = vm.connect(7);
    client.write_all(b"early").expect("write");
    vm.expect_nothing();
    vm.send(ports, OP_RESPONSE, 0, &[]);
    assert_eq!(vm.expect(OP_RW).1, b"early");
    assert_eq!(read(&mut client), format!("OK {}\n", ports.0).into_bytes());
}

#[test]
fn refused_and_wrong_greetings_close_the_stream() {
    let mut vm = Vm::new();
    let (mut client, ports) = vm.connect(9);
    vm.send(ports, OP_RST, 0, &[]);
    assert!(is_closed(&mut client));
    for text in [
        "HELLO\n",
        "CONNECT x\n",
        "0123456789012345678901234567890123456789",
    ] {
        let mut client = UnixStream::connect(vm.socket()).expect("connect");
        client.set_nonblocking(true).expect("nonblocking");
        client.write_all(text.as_bytes()).expect("write");
        vm.expect_nothing();
        // Unread bytes make the close a reset, which is an error or an end.
        assert!(!matches!(client.read(&mut [0; 16]), Ok(1..)), "{text:?}");
    }
    let mut client = UnixStream::connect(vm.socket()).expect("connect");
    client.write_all(b"CONN").expect("write");
    assert_eq!(vm.connections(), 1);
    drop(client);
    assert_eq!(vm.connections(), 0);
}

#[test]
fn a_program_that_goes_away_before_the_answer_resets() {
    let mut vm = Vm::new();
    let (client, ports) = vm.connect(9);
    drop(client);
    let (rst, _) = vm.expect(OP_RST);
    assert_eq!((rst.src_port, rst.dst_port), ports);
    assert_eq!(vm.connections(), 0);
    vm.send(ports, OP_RESPONSE, 0, &[]);
    vm.expect(OP_RST);
}

#[test]
fn the_guest_reaches_services_only() {
    let mut vm = Vm::new();
    let (mut stream, ports) = vm.service(5000);
    vm.send(ports, OP_RW, 0, b"ready");
    assert_eq!(read(&mut stream), b"ready");
    stream.write_all(b"identity").expect("write");
    assert_eq!(vm.expect(OP_RW).1, b"identity");
    vm.send((1026, 5001), OP_REQUEST, 0, &[]);
    let (rst, _) = vm.expect(OP_RST);
    assert_eq!((rst.src_port, rst.dst_port), (1026, 5001));
    for port in 6000..6000 + SERVICE_CONNECTIONS_MAX as u32 - 1 {
        vm.send((SERVICE, port), OP_REQUEST, 0, &[]);
        vm.expect(OP_RESPONSE);
    }
    vm.send((SERVICE, 7000), OP_REQUEST, 0, &[]);
    vm.expect(OP_RST);
}

#[test]
fn foreign_and_unknown_packets_are_reset_or_dropped() {
    let mut vm = Vm::new();
    let good = Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: 1,
        dst_port: SERVICE,
        kind: TYPE_STREAM,
        op: OP_REQUEST,
        buf_alloc: 1000,
        ..Header::default()
    };
    vm.send_raw(Header { src_cid: 4, ..good }, &[]);
    vm.expect_nothing();
    vm.send_raw(Header { op: OP_RST, ..good }, &[]);
    vm.expect_nothing();
    vm.send_raw(Header { dst_cid: 9, ..good }, &[]);
    assert_eq!(vm.expect(OP_RST).0.src_cid, 9);
    vm.send_raw(Header { kind: 2, ..good }, &[]);
    assert_eq!(vm.expect(OP_RST).0.kind, 2);
    for op in [
        OP_RESPONSE,
        OP_RW,
        OP_SHUTDOWN,
        OP_CREDIT_UPDATE,
        OP_CREDIT_REQUEST,
        0,
        8,
        99,
    ] {
        vm.send_raw(Header { op, ..good }, &[]);
        vm.expect(OP_RST);
    }
    assert_eq!(vm.connections(), 0);
}

#[test]
fn packets_that_break_a_connection_reset_it() {
    let breaks: [(&str, u16, u32, u32); 5] = [
        ("a second request", OP_REQUEST, 0, 0),
        ("an answer to no request", OP_RESPONSE, 0, 0),
        ("a length beyond the chain", OP_RW, 0, 100),
        ("a length beyond all", OP_RW, 0, u32::MAX),
        ("an unknown operation", 55, 0, 0),
    ];
    for (what, op, flags, len) in breaks {
        let mut vm = Vm::new();
        let (mut client, ports) = vm.established(80);
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: ports.1,
            dst_port: ports.0,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            ..Header::default()
        };
        vm.send_raw(header, b"abc");
        vm.expect(OP_RST);
        assert!(is_closed(&mut client), "{what}");
        assert_eq!(vm.connections(), 0, "{what}");
    }
}

#[test]
fn a_header_that_does_not_fit_needs_a_reset() {
    let mut vm = Vm::without_buffers();
    let short = vm.driver.input(&[0; 43]);
    vm.driver.offer(TX, &[short]);
    vm.driver.kick(TX);
    vm.run();
    assert!(vm.driver.needs_reset());

    let mut vm = Vm::without_buffers();
    let small = vm.driver.output(44);
    vm.driver.offer(RX, &[small]);
    vm.send((1, 1), OP_REQUEST, 0, &[]);
    assert!(vm.driver.needs_reset());
}

#[test]
fn resets_for_strangers_wait_for_buffers() {
    let mut vm = Vm::without_buffers();
    for port in 0..STRAY_RESETS_MAX as u32 + 20 {
        vm.send((1, port), OP_REQUEST, 0, &[]);
    }
    // One notification, about the receive queue, brings all.
    vm.post_buffers(128);
    let mut resets = 0;
    while let Some((header, _)) = vm.got.pop_front() {
        assert_eq!((header.op, header.dst_port), (OP_RST, resets));
        resets += 1;
    }
    assert_eq!(resets, STRAY_RESETS_MAX as u32 + 20);
}
