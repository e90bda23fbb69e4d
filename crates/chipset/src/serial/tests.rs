//! Serial port behaviour seen through its registers, its line and its sink.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::test_lines::CountingLine;

fn port() -> (Serial, Arc<CountingLine>) {
    let line = Arc::new(CountingLine::default());
    (Serial::new(line.clone()), line)
}

fn read(serial: &Serial, offset: u64) -> u8 {
    let mut data = [0xaa];
    serial.read(offset, &mut data);
    data[0]
}

fn write(serial: &Serial, offset: u64, value: u8) {
    serial.write(offset, &[value]);
}

/// A sink whose room and failure the test decides.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<SinkState>>);

#[derive(Default)]
struct SinkState {
    bytes: Vec<u8>,
    room: usize,
    error: Option<io::ErrorKind>,
}

impl Sink {
    fn with_room(room: usize) -> Self {
        let sink = Self::default();
        sink.set(room, None);
        sink
    }

    fn set(&self, room: usize, error: Option<io::ErrorKind>) {
        let mut state = self.0.lock().unwrap();
        state.room = room;
        state.error = error;
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock().unwrap();
        if let Some(kind) = state.error {
            return Err(kind.into());
        }
        let taken = bytes.len().min(state.room);
        if taken == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.room -= taken;
        state.bytes.extend(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn output_reaches_the_sink_in_order_and_the_sink_can_change() {
    let (serial, line) = port();
    write(&serial, DATA, b'x');
    let first = Sink::with_room(100);
    serial.set_output(Box::new(first.clone()));
    write(&serial, DATA, b'a');
    write(&serial, DATA, b'b');
    let second = Sink::with_room(100);
    serial.set_output(Box::new(second.clone()));
    write(&serial, DATA, b'c');
    assert_eq!(
        (first.bytes(), second.bytes()),
        (b"ab".to_vec(), b"c".to_vec())
    );
    assert_eq!(line.take(), 0);
    assert_eq!(read(&serial, LINE_STATUS), LSR_IDLE);
}

#[test]
fn full_sink_gets_its_bytes_later() {
    let (serial, _) = port();
    let sink = Sink::with_room(1);
    serial.set_output(Box::new(sink.clone()));
    for byte in b"hello" {
        write(&serial, DATA, *byte);
    }
    assert_eq!(sink.bytes(), b"h");
    assert_eq!(serial.flush_output(), 4);
    sink.set(2, None);
    assert_eq!(serial.flush_output(), 2);
    sink.set(100, None);
    assert_eq!(serial.flush_output(), 0);
    assert_eq!((sink.bytes(), serial.lost_output()), (b"hello".to_vec(), 0));
}

#[test]
fn endless_output_to_a_stuck_or_broken_sink_is_bounded_and_counted() {
    let (serial, _) = port();
    let sink = Sink::with_room(0);
    serial.set_output(Box::new(sink.clone()));
    for _ in 0..64 * 1024 + 10 {
        write(&serial, DATA, b'.');
    }
    assert_eq!(
        (serial.flush_output(), serial.lost_output()),
        (64 * 1024, 10)
    );
    for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::StorageFull] {
        sink.set(0, Some(kind));
        assert_eq!(serial.flush_output(), 0);
        write(&serial, DATA, b'.');
    }
    assert_eq!(serial.lost_output(), 64 * 1024 + 12);
    sink.set(0, Some(io::ErrorKind::Interrupted));
    write(&serial, DATA, b'.');
    assert_eq!(serial.flush_output(), 1);
}

#[test]
fn input_is_read_back_and_interrupts_when_enabled() {
    let (serial, line) = port();
    assert_eq!(serial.push_input(b"a"), 1);
    assert_eq!(line.take(), 0);
    write(&serial, INTERRUPT_ENABLE, IER_INPUT);
    assert_eq!(line.take(), 1);
    assert_eq!(serial.push_input(b"b"), 1);
    assert_eq!(line.take(), 0);
    assert_eq!(read(&serial, INTERRUPT_ID), IIR_INPUT);
    assert_eq!(read(&serial, LINE_STATUS), LSR_IDLE | LSR_INPUT);
    assert_eq!((read(&serial, DATA), read(&serial, DATA)), (b'a', b'b'));
    assert_eq!(read(&serial, INTERRUPT_ID), IIR_NONE);
    assert_eq!(read(&serial, DATA), 0);
    assert_eq!(serial.push_input(b"c"), 1);
    assert_eq!(line.take(), 1);
}

#[test]
fn refused_input_wakes_once_when_the_guest_has_read() {
    let (serial, _) = port();
    let wakes = Arc::new(AtomicUsize::new(0));
    let counter = wakes.clone();
    serial.set_input_waker(Some(Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    })));
    assert_eq!(serial.push_input(&[7; 100]), INPUT_BYTES_MAX);
    assert_eq!(serial.push_input(&[7]), 0);
    for _ in 0..INPUT_BYTES_MAX {
        assert_eq!(wakes.load(Ordering::SeqCst), 0);
        assert_eq!(read(&serial, DATA), 7);
    }
    assert_eq!(read(&serial, DATA), 0);
    assert_eq!(wakes.load(Ordering::SeqCst), 1);
}

#[test]
fn empty_transmitter_interrupts_after_enabling_and_after_each_byte() {
    let (serial, line) = port();
    write(&serial, INTERRUPT_ENABLE, IER_OUTPUT);
    assert_eq!(line.take(), 1);
    assert_eq!(read(&serial, INTERRUPT_ID), IIR_OUTPUT);
    assert_eq!(read(&serial, INTERRUPT_ID), IIR_NONE);
    write(&serial, DATA, b'x');
    assert_eq!(line.take(), 1);
    write(&serial, DATA, b'y');
    write(&serial, INTERRUPT_ENABLE, IER_OUTPUT);
    assert_eq!(line.take(), 0);
    write(&serial, INTERRUPT_ENABLE, 0);
    write(&serial, INTERRUPT_ENABLE, IER_OUTPUT);
    assert_eq!(line.take(), 1);
}

#[test]
fn a_driver_that_looks_at_the_line_status_alone_hears_of_each_byte() {
    let (serial, line) = port();
    write(&serial, INTERRUPT_ENABLE, IER_OUTPUT);
    assert_eq!(line.take(), 1);
    for _ in 0..3 {
        assert_ne!(read(&serial, LINE_STATUS) & LSR_IDLE, 0);
        write(&serial, DATA, b'x');
        assert_eq!(line.take(), 1);
        // A burst is told of once.
        write(&serial, DATA, b'y');
        assert_eq!(line.take(), 0);
    }
}

#[test]
fn registers_answer_the_way_drivers_probe_them() {
    let (serial, _) = port();
    write(&serial, LINE_CONTROL, LCR_DIVISOR | 3);
    assert_eq!(
        (read(&serial, DATA), read(&serial, INTERRUPT_ENABLE)),
        (12, 0)
    );
    write(&serial, DATA, 1);
    write(&serial, INTERRUPT_ENABLE, 2);
    assert_eq!(
        (read(&serial, DATA), read(&serial, INTERRUPT_ENABLE)),
        (1, 2)
    );
    write(&serial, LINE_CONTROL, 3);
    write(&serial, INTERRUPT_ENABLE, 0xff);
    assert_eq!(read(&serial, INTERRUPT_ENABLE), 0x0f);
    write(&serial, SCRATCH, 0x5a);
    assert_eq!(read(&serial, SCRATCH), 0x5a);
    write(&serial, INTERRUPT_ID, FCR_ENABLE);
    assert_eq!(read(&serial, INTERRUPT_ID) & IIR_FIFO, IIR_FIFO);
    assert_eq!(read(&serial, MODEM_STATUS), MSR_CONNECTED);
    write(&serial, MODEM_CONTROL, MCR_LOOP | 0x0a);
    assert_eq!(read(&serial, MODEM_STATUS) & 0xf0, 0x90);
    write(&serial, MODEM_CONTROL, MCR_LOOP | 0x05);
    assert_eq!(read(&serial, MODEM_STATUS) & 0xf0, 0x60);
    write(&serial, DATA, b'l');
    assert_eq!(read(&serial, DATA), b'l');
    serial.push_input(b"gone");
    write(&serial, INTERRUPT_ID, FCR_ENABLE | FCR_CLEAR_INPUT);
    assert_eq!(read(&serial, LINE_STATUS), LSR_IDLE);
}

#[test]
fn impossible_saved_states_are_refused() {
    let (serial, line) = port();
    let saved = serial.save();
    let check = |field, change: &dyn Fn(&mut SavedSerial)| {
        let mut bad = saved.clone();
        change(&mut bad);
        assert_eq!(
            Serial::restore(line.clone(), &bad).unwrap_err().field,
            field
        );
    };
    check("interrupt_enable", &|s| s.interrupt_enable = 0x10);
    check("modem_control", &|s| s.modem_control = 0x20);
    check("input", &|s| s.input = vec![0; 65]);
}

proptest! {
    #[test]
    fn any_accesses_keep_a_restorable_state(
        steps in prop::collection::vec((0u8..3, 0u64..10, any::<u8>(), 0usize..=8), 0..200)
    ) {
        let (serial, line) = port();
        for (kind, offset, value, len) in steps {
            match kind {
                0 => serial.write(offset, &[value; 8][..len]),
                1 => serial.read(offset, &mut [0; 8][..len]),
                _ => drop(serial.push_input(&[value; 8][..len])),
            }
        }
        let saved = serial.save();
        let restored = Serial::restore(line, &saved).unwrap();
        prop_assert_eq!(restored.save(), saved);
        for offset in 0..8 {
            prop_assert_eq!(read(&restored, offset), read(&serial, offset));
        }
    }
}
