//! A file in memory that records every operation and fails on request.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::storage::Storage;

/// One operation that changes the file, or makes it durable.
#[derive(Clone, Debug)]
pub enum Op {
    Write { offset: u64, data: Vec<u8> },
    Zero { offset: u64, length: u64 },
    SetLen(u64),
    Sync,
}

#[derive(Debug, Default)]
struct State {
    data: Vec<u8>,
    log: Vec<Op>,
    /// Fails every write once this many more operations have passed.
    full_after: Option<usize>,
    fail_sync: bool,
}

/// Handles to the same file share its state.
#[derive(Clone, Debug, Default)]
pub struct MemFile(Arc<Mutex<State>>);

impl MemFile {
    pub fn new(data: Vec<u8>) -> MemFile {
        let file = MemFile::default();
        file.state().data = data;
        file
    }

    pub fn boxed(&self) -> Box<dyn Storage> {
        Box::new(self.clone())
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.state().data.clone()
    }

    pub fn log(&self) -> Vec<Op> {
        self.state().log.clone()
    }

    /// Lets `operations` writes pass, then reports a full disk until [`MemFile::heal`].
    pub fn fill_up_after(&self, operations: usize) {
        self.state().full_after = Some(operations);
    }

    pub fn fail_sync(&self) {
        self.state().fail_sync = true;
    }

    pub fn heal(&self) {
        let mut state = self.state();
        state.full_after = None;
        state.fail_sync = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with the lock held")
    }

    fn change(&self, op: Op) -> io::Result<()> {
        let mut state = self.state();
        if let Some(left) = &mut state.full_after {
            if *left == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *left -= 1;
        }
        apply(&mut state.data, &op);
        state.log.push(op);
        Ok(())
    }
}

/// Does to `data` what `op` does to a file.
pub fn apply(data: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write {
            offset,
            data: bytes,
        } => {
            let end = *offset as usize + bytes.len();
            if data.len() < end {
                data.resize(end, 0);
            }
            data[*offset as usize..end].copy_from_slice(bytes);
        }
        Op::Zero { offset, length } => {
            let end = ((offset + length) as usize).min(data.len());
            let start = (*offset as usize).min(end);
            data[start..end].fill(0);
        }
        Op::SetLen(length) => data.resize(*length as usize, 0),
        Op::Sync => {}
    }
}

impl Storage for MemFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        buf.fill(0);
        if let Some(rest) = state.data.get(offset as usize..) {
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Op::Write {
            offset,
            data: data.to_vec(),
        })
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(Op::Zero { offset, length })
    }

    fn zero_range(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(Op::Zero { offset, length })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(Op::SetLen(length))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().data.len() as u64)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.fail_sync {
            return Err(io::Error::other("injected"));
        }
        state.log.push(Op::Sync);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let end = Storage::len(self)?;
        Ok((offset < end).then_some((offset, end)))
    }
}
