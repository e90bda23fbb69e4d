//! A 16550A serial port. Output goes byte by byte to a host sink that can be replaced at run
//! time; input is injected from any thread. The transmitter is always ready, the line speed and
//! the modem are not modelled.
//!
//! The interrupt line is high while a condition is pending, and its rise is an edge: a handler
//! looks until nothing is pending, as with any UART on an edge-triggered line.

mod output;
mod saved;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex};

use crate::lock::lock;
use crate::{BusDevice, InterruptLine, RestoreError};
use output::Output;

pub use saved::SavedSerial;

/// Bytes of input that wait for the guest at most.
pub(crate) const INPUT_BYTES_MAX: usize = 64;

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const INTERRUPT_ID: u64 = 2;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const MODEM_STATUS: u64 = 6;
const SCRATCH: u64 = 7;

const IER_INPUT: u8 = 1 << 0;
const IER_OUTPUT: u8 = 1 << 1;
const IER_BITS: u8 = 0x0f;
const IIR_NONE: u8 = 0x01;
const IIR_OUTPUT: u8 = 0x02;
const IIR_INPUT: u8 = 0x04;
const IIR_FIFO: u8 = 0xc0;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_INPUT: u8 = 1 << 1;
const LCR_DIVISOR: u8 = 1 << 7;
const MCR_LOOP: u8 = 1 << 4;
const MCR_BITS: u8 = 0x1f;
const LSR_INPUT: u8 = 1 << 0;
const LSR_IDLE: u8 = 0x60;
/// Clear to send, data set ready, carrier: somebody is at the other end.
const MSR_CONNECTED: u8 = 0xb0;
/// Divisor after reset: 9600 baud.
const DIVISOR_RESET: u16 = 12;

type Waker = Arc<dyn Fn() + Send + Sync>;

/// A serial port.
pub struct Serial {
    registers: Mutex<Registers>,
    output: Mutex<Output>,
    input_waker: Mutex<Option<Waker>>,
    line: Arc<dyn InterruptLine>,
}

impl Serial {
    /// Returns a port after reset whose output is discarded until a sink is set.
    pub fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self::with_registers(line, Registers::default())
    }

    /// Returns a port that goes on from `saved`; its output is discarded until a sink is set.
    pub fn restore(
        line: Arc<dyn InterruptLine>,
        saved: &SavedSerial,
    ) -> Result<Self, RestoreError> {
        Ok(Self::with_registers(line, saved.try_into()?))
    }

    fn with_registers(line: Arc<dyn InterruptLine>, registers: Registers) -> Self {
        Self {
            registers: Mutex::new(registers),
            output: Mutex::default(),
            input_waker: Mutex::default(),
            line,
        }
    }

    /// Returns registers and unread input. Output that a slow sink has not taken yet is not part
    /// of it: it belongs to this machine and not to its clones.
    pub fn save(&self) -> SavedSerial {
        (&*lock(&self.registers)).into()
    }

    /// Replaces the sink. A sink must not block: what it refuses (`WouldBlock`) is kept, up to
    /// 64 KiB, and what it fails on is lost and counted.
    pub fn set_output(&self, sink: Box<dyn Write + Send>) {
        lock(&self.output).set_sink(sink);
    }

    /// Offers kept output to the sink again; returns how many bytes it still refuses.
    pub fn flush_output(&self) -> usize {
        lock(&self.output).retry()
    }

    /// Returns how many bytes of output were lost because the sink failed or stayed full.
    pub fn lost_output(&self) -> u64 {
        lock(&self.output).lost()
    }

    /// Gives `bytes` to the guest and returns how many of them fit. After a refusal the input
    /// waker is called once the guest has read what it has.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        self.change(|registers| registers.push_input(bytes))
    }

    /// Sets what is called, on a vCPU's thread, when there is room again after a refusal.
    pub fn set_input_waker(&self, waker: Option<Box<dyn Fn() + Send + Sync>>) {
        *lock(&self.input_waker) = waker.map(Arc::from);
    }

    /// Changes the registers and raises the edge that comes of it.
    fn change<T>(&self, change: impl FnOnce(&mut Registers) -> T) -> T {
        self.change_after(|_| (), change)
    }

    /// As [`Self::change`]; what `before` takes back is news again.
    fn change_after<T>(
        &self,
        before: impl FnOnce(&mut Registers),
        change: impl FnOnce(&mut Registers) -> T,
    ) -> T {
        let mut registers = lock(&self.registers);
        before(&mut registers);
        let before = registers.is_pending();
        let result = change(&mut registers);
        let edge = !before && registers.is_pending();
        drop(registers);
        if edge {
            self.line.trigger();
        }
        result
    }

    fn wake_input(&self) {
        let waker = lock(&self.input_waker).clone();
        if let Some(waker) = waker {
            waker();
        }
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial").finish_non_exhaustive()
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some(first) = data.first_mut() else {
            return;
        };
        let mut registers = lock(&self.registers);
        *first = registers.read(offset);
        let wake = registers.take_wake();
        drop(registers);
        if wake {
            self.wake_input();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let sent = self.change_after(
            |registers| registers.fill_transmitter(offset),
            |registers| registers.write(offset, value),
        );
        if let Some(byte) = sent {
            lock(&self.output).write(byte);
        }
    }
}

#[derive(Debug)]
struct Registers {
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: u16,
    fifo: bool,
    /// The transmitter became empty and no one has been told.
    output_pending: bool,
    /// The guest has looked whether the transmitter is empty since it last sent.
    output_seen: bool,
    input: VecDeque<u8>,
    /// Input was refused since the guest last emptied the queue.
    refused: bool,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            interrupt_enable: 0,
            line_control: 0,
            modem_control: 0,
            scratch: 0,
            divisor: DIVISOR_RESET,
            fifo: false,
            output_pending: false,
            output_seen: false,
            input: VecDeque::new(),
            refused: false,
        }
    }
}

impl Registers {
    fn divisor_latched(&self) -> bool {
        self.line_control & LCR_DIVISOR != 0
    }

    fn read(&mut self, offset: u64) -> u8 {
        match offset {
            DATA if self.divisor_latched() => self.divisor as u8,
            DATA => self.input.pop_front().unwrap_or(0),
            INTERRUPT_ENABLE if self.divisor_latched() => (self.divisor >> 8) as u8,
            INTERRUPT_ENABLE => self.interrupt_enable,
            INTERRUPT_ID => self.take_interrupt_id(),
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => {
                self.output_seen = true;
                LSR_IDLE | if self.input.is_empty() { 0 } else { LSR_INPUT }
            }
            MODEM_STATUS => self.modem_status(),
            SCRATCH => self.scratch,
            _ => 0xff,
        }
    }

    /// Takes a register write and returns the byte it sends, if any.
    fn write(&mut self, offset: u64, value: u8) -> Option<u8> {
        match offset {
            DATA if self.divisor_latched() => {
                self.divisor = self.divisor & 0xff00 | u16::from(value);
            }
            DATA => return self.transmit(value),
            INTERRUPT_ENABLE if self.divisor_latched() => {
                self.divisor = self.divisor & 0x00ff | u16::from(value) << 8;
            }
            INTERRUPT_ENABLE => self.enable_interrupts(value & IER_BITS),
            INTERRUPT_ID => {
                self.fifo = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_INPUT != 0 {
                    self.input.clear();
                }
            }
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value & MCR_BITS,
            SCRATCH => self.scratch = value,
            _ => {}
        }
        None
    }

    /// A byte that is sent takes back that the transmitter is empty (PC16550D, "Interrupt Control
    /// Functions"), so that it being empty again is an edge. Within a burst there is none, as the queue of
    /// a 16550 is not empty in between: its end is where the guest looks at the status.
    fn fill_transmitter(&mut self, offset: u64) {
        if offset == DATA && !self.divisor_latched() && std::mem::take(&mut self.output_seen) {
            self.output_pending = false;
        }
    }

    fn transmit(&mut self, byte: u8) -> Option<u8> {
        self.output_pending = true;
        if self.modem_control & MCR_LOOP == 0 {
            return Some(byte);
        }
        self.push_input(&[byte]);
        None
    }

    fn enable_interrupts(&mut self, value: u8) {
        // The transmitter is empty at all times, which enabling its interrupt reports.
        self.output_pending |= value & !self.interrupt_enable & IER_OUTPUT != 0;
        self.interrupt_enable = value;
    }

    fn is_pending(&self) -> bool {
        self.interrupt_id() != IIR_NONE
    }

    fn interrupt_id(&self) -> u8 {
        if self.interrupt_enable & IER_INPUT != 0 && !self.input.is_empty() {
            IIR_INPUT
        } else if self.interrupt_enable & IER_OUTPUT != 0 && self.output_pending {
            IIR_OUTPUT
        } else {
            IIR_NONE
        }
    }

    fn take_interrupt_id(&mut self) -> u8 {
        let id = self.interrupt_id();
        if id == IIR_OUTPUT {
            self.output_pending = false;
        }
        id | if self.fifo { IIR_FIFO } else { 0 }
    }

    fn modem_status(&self) -> u8 {
        if self.modem_control & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        let control = self.modem_control;
        (control & 1) << 5 | (control & 2) << 3 | (control & 4) << 4 | (control & 8) << 4
    }

    /// Takes what fits and returns how much that is.
    fn push_input(&mut self, bytes: &[u8]) -> usize {
        let accepted = bytes.len().min(INPUT_BYTES_MAX - self.input.len());
        self.input.extend(&bytes[..accepted]);
        self.refused |= accepted < bytes.len();
        accepted
    }

    /// Returns whether whoever was refused can push again.
    fn take_wake(&mut self) -> bool {
        self.refused && self.input.is_empty() && std::mem::take(&mut self.refused)
    }
}
