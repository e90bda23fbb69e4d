//! Everything at once: a worker thread, a guest that echoes on its own thread, host programs on
//! theirs, and a gate that opens and shuts. No byte and no wake-up may get lost.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::testing::{Piece, TestLine, test_ram};
use crate::worker::Worker;

const RX_START: u64 = 0x10_0000;
const TX_START: u64 = 0x20_0000;
const BUFFER: u64 = 0x1000;
const TX_BUFFERS: u64 = 32;
const PROGRAMS: u32 = 4;
const BYTES: usize = 1 << 20;

/// An echo server in the guest.
struct Guest {
    driver: Driver,
    rx_gpa: HashMap<u16, u64>,
    tx_free: Vec<u64>,
    tx_busy: HashMap<u16, u64>,
    outbox: VecDeque<Packet>,
    conns: HashMap<(u32, u32), Credit>,
}

#[derive(Default)]
struct Credit {
    /// Bytes echoed, which are all that were received.
    fwd_cnt: u32,
    sent: u32,
    host_fwd_cnt: u32,
}

impl Guest {
    fn new(mut driver: Driver) -> Self {
        driver.start();
        let mut rx_gpa = HashMap::new();
        for i in 0..64 {
            let gpa = RX_START + i * BUFFER;
            let piece = Piece {
                gpa,
                len: BUFFER as u32,
                writable: true,
            };
            rx_gpa.insert(driver.offer(RX, &[piece]), gpa);
        }
        driver.kick(RX);
        let tx_free = (0..TX_BUFFERS).map(|i| TX_START + i * BUFFER).collect();
        let (tx_busy, outbox, conns) = Default::default();
        Self {
            driver,
            rx_gpa,
            tx_free,
            tx_busy,
            outbox,
            conns,
        }
    }

    fn serve(&mut self, done: &AtomicBool) {
        while !done.load(Ordering::SeqCst) {
            let seen = self.driver.line().edges();
            let mut busy = self.receive();
            while let Some(used) = self.driver.used(TX) {
                self.tx_free
                    .push(self.tx_busy.remove(&used.head).expect("sent"));
                busy = true;
            }
            busy |= self.send();
            if !busy && !done.load(Ordering::SeqCst) {
                assert!(self.driver.line().wait_past(seen), "a wake-up was lost");
            }
        }
    }

    fn receive(&mut self) -> bool {
        let mut busy = false;
        while let Some(used) = self.driver.used(RX) {
            busy = true;
            let gpa = self.rx_gpa.remove(&used.head).expect("posted");
            let bytes = self.driver.peek(gpa, used.len as usize);
            let (header, payload) = bytes.split_first_chunk().expect("a header");
            self.take(Header::decode(header), payload.to_vec());
            let piece = Piece {
                gpa,
                len: BUFFER as u32,
                writable: true,
            };
            self.rx_gpa.insert(self.driver.offer(RX, &[piece]), gpa);
            self.driver.kick_if_wanted(RX, 1);
        }
        busy
    }

    fn take(&mut self, header: Header, payload: Vec<u8>) {
        let key = (header.src_port, header.dst_port);
        let conn = self.conns.entry(key).or_default();
        conn.host_fwd_cnt = header.fwd_cnt;
        let answer = match header.op {
            OP_REQUEST => OP_RESPONSE,
            OP_RW => OP_RW,
            OP_CREDIT_REQUEST => OP_CREDIT_UPDATE,
            OP_SHUTDOWN if header.flags == SHUTDOWN_BOTH => OP_RST,
            OP_SHUTDOWN => OP_SHUTDOWN,
            _ => return,
        };
        let answer = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: key.1,
            dst_port: key.0,
            len: payload.len() as u32,
            flags: header.flags,
            op: answer,
            ..header
        };
        self.outbox.push_back((answer, payload));
    }

    fn send(&mut self) -> bool {
        let mut busy = false;
        while let Some((mut header, payload)) = self.outbox.pop_front() {
            let conn = self
                .conns
                .entry((header.dst_port, header.src_port))
                .or_default();
            let in_flight = conn.sent.wrapping_sub(conn.host_fwd_cnt);
            let room = in_flight as usize + payload.len() <= BUF_ALLOC as usize;
            let Some(gpa) = room.then(|| self.tx_free.pop()).flatten() else {
                self.outbox.push_front((header, payload));
                break;
            };
            conn.sent = conn.sent.wrapping_add(payload.len() as u32);
            conn.fwd_cnt = conn.fwd_cnt.wrapping_add(payload.len() as u32);
            header.buf_alloc = 64 << 10;
            header.fwd_cnt = conn.fwd_cnt;
            self.driver.poke(gpa, &header.encode());
            self.driver.poke(gpa + HEADER_BYTES as u64, &payload);
            let len = (HEADER_BYTES + payload.len()) as u32;
            let head = self.driver.offer(
                TX,
                &[Piece {
                    gpa,
                    len,
                    writable: false,
                }],
            );
            self.tx_busy.insert(head, gpa);
            self.driver.kick_if_wanted(TX, 1);
            busy = true;
        }
        busy
    }
}

/// Sends bytes to guest port `port` and returns whether they came back.
fn program(path: &std::path::Path, port: u32) -> bool {
    let mut stream = UnixStream::connect(path).expect("connect");
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .expect("greet");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("answer");
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"OK "));
    let bytes: Vec<u8> = (0..BYTES)
        .map(|i| (i * 31 + i / 999 + port as usize) as u8)
        .collect();
    let mut writer = stream.try_clone().expect("clone");
    let sent = bytes.clone();
    let sender = thread::spawn(move || {
        writer.write_all(&sent).expect("write");
        writer.shutdown(Shutdown::Write).expect("shutdown");
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("read");
    sender.join().expect("sender");
    got == bytes
}

#[test]
fn bytes_and_wake_ups_survive_threads_and_gates() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mem = test_ram();
    let mut builder = Worker::builder("io", mem.clone()).expect("builder");
    let line = Arc::new(TestLine::default());
    let device = device(&folder, &Accepted::default());
    let transport = builder.add(Box::new(device), line.clone()).expect("add");
    let worker = builder.spawn().expect("spawn");
    worker.ungate();
    let mut guest = Guest::new(Driver::new(mem, transport, line.clone()));
    let done = AtomicBool::new(false);
    let path = folder.path().join("vsock");
    thread::scope(|scope| {
        scope.spawn(|| guest.serve(&done));
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                worker.gate();
                worker.drain();
                thread::yield_now();
                worker.ungate();
                thread::yield_now();
            }
        });
        let programs: Vec<_> = (0..PROGRAMS)
            .map(|port| {
                scope.spawn({
                    let path = path.clone();
                    move || program(&path, port)
                })
            })
            .collect();
        let echoed: Vec<bool> = programs
            .into_iter()
            .map(|program| program.join().expect("program"))
            .collect();
        done.store(true, Ordering::SeqCst);
        chipset::InterruptLine::trigger(line.as_ref());
        assert!(echoed.iter().all(|same| *same));
    });
    worker.stop();
}
