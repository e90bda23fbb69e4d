//! One split virtqueue as a device uses it, and the descriptor chains taken from it.
//!
//! Everything read from the rings is the guest's word: a chain is handed out only when its head,
//! links, order, addresses and size hold; anything else is [`Broken`] and the device stops until
//! the driver resets it (virtio 1.2 §2.1.2).

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Guest RAM as devices reach it. Its host addresses stay the same for the VM's life.
pub type GuestRam = GuestMemoryMmap<()>;

/// The driver broke the virtqueue contract; the device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The available ring claims more entries than the queue holds, or is not reachable.
    #[error("queue {queue}: available ring is not usable")]
    AvailRing {
        /// Index of the queue.
        queue: usize,
        /// Why.
        source: virtio_queue::Error,
    },
    /// The used ring cannot be written.
    #[error("queue {queue}: used ring is not usable")]
    UsedRing {
        /// Index of the queue.
        queue: usize,
        /// Why.
        source: virtio_queue::Error,
    },
    /// A descriptor chain breaks a rule.
    #[error("queue {queue}: descriptor chain at {head} {rule}")]
    Chain {
        /// Index of the queue.
        queue: usize,
        /// Head descriptor.
        head: u16,
        /// The broken rule, to follow the chain's name in a sentence.
        rule: &'static str,
    },
    /// Guest memory that was checked before cannot be reached.
    #[error("guest memory at {gpa:#x} cannot be reached")]
    Memory {
        /// Guest-physical address.
        gpa: u64,
    },
}

/// A piece of guest memory inside a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes, never 0.
    pub len: u32,
}

/// A checked descriptor chain: device-readable segments first, then device-writable ones.
/// One value is reused for many requests, so that none allocates.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    readable_len: u64,
    writable_len: u64,
}

impl Chain {
    /// Index of the first descriptor: what goes back into the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the driver sent.
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// Segments that the device may write.
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// Fills `buf` with what the driver sent, from byte `offset` of the readable part on.
    pub fn read(&self, mem: &GuestRam, offset: u64, buf: &mut [u8]) -> Result<(), Broken> {
        let mut done = 0;
        for (gpa, len) in pieces(&self.readable, offset, buf.len()) {
            mem.read_slice(&mut buf[done..done + len], GuestAddress(gpa))
                .map_err(|_| Broken::Memory { gpa })?;
            done += len;
        }
        if done == buf.len() {
            Ok(())
        } else {
            Err(Broken::Memory { gpa: u64::MAX })
        }
    }

    /// Puts `buf` at byte `offset` of the writable part.
    pub fn write(&self, mem: &GuestRam, offset: u64, buf: &[u8]) -> Result<(), Broken> {
        let mut done = 0;
        for (gpa, len) in pieces(&self.writable, offset, buf.len()) {
            mem.write_slice(&buf[done..done + len], GuestAddress(gpa))
                .map_err(|_| Broken::Memory { gpa })?;
            done += len;
        }
        if done == buf.len() {
            Ok(())
        } else {
            Err(Broken::Memory { gpa: u64::MAX })
        }
    }

    fn clear(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        self.readable_len = 0;
        self.writable_len = 0;
    }
}

/// Cuts `len` bytes at `offset` of `segments` into contiguous guest ranges.
fn pieces(segments: &[Segment], offset: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    let mut skip = offset;
    let mut left = len;
    segments.iter().filter_map(move |segment| {
        let size = u64::from(segment.len);
        if left == 0 || skip >= size {
            skip = skip.saturating_sub(size);
            return None;
        }
        let start = std::mem::take(&mut skip);
        let take = usize::try_from(size - start)
            .unwrap_or(usize::MAX)
            .min(left);
        left -= take;
        Some((segment.gpa + start, take))
    })
}

/// A queue that the driver has set up and the device works on.
#[derive(Debug)]
pub struct VirtQueue {
    index: usize,
    queue: Queue,
    used_since_signal: bool,
}

impl VirtQueue {
    pub(crate) fn new(index: usize, state: QueueState) -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            index,
            queue: Queue::try_from(state)?,
            used_since_signal: false,
        })
    }

    pub(crate) fn is_valid(&self, mem: &GuestRam) -> bool {
        // `Queue::is_valid` logs; the checks are the same: ring sizes of virtio 1.2 §2.7.
        let size = u64::from(self.queue.size());
        let reachable = |gpa: u64, len: u64| {
            usize::try_from(len)
                .is_ok_and(|len| GuestMemoryBackend::check_range(mem, GuestAddress(gpa), len))
        };
        self.queue.ready()
            && self.queue.avail_ring() != 0
            && reachable(self.queue.desc_table(), 16 * size)
            && reachable(self.queue.avail_ring(), 6 + 2 * size)
            && reachable(self.queue.used_ring(), 6 + 8 * size)
    }

    pub(crate) fn ready(&self) -> bool {
        self.queue.ready()
    }

    pub(crate) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Takes the next chain into `chain`; `Ok(false)` when there is none, and then the driver is
    /// asked to notify about the next one.
    pub(crate) fn pop(
        &mut self,
        mem: &GuestRam,
        chain: &mut Chain,
        max_segments: usize,
    ) -> Result<bool, Broken> {
        let queue = self.index;
        if !self.queue.ready() {
            return Ok(false);
        }
        loop {
            let next = self
                .queue
                .iter(mem)
                .map_err(|source| Broken::AvailRing { queue, source })?
                .next();
            match next {
                Some(descriptors) => {
                    let head = descriptors.head_index();
                    chain.clear(head);
                    return check_chain(mem, descriptors, chain, max_segments)
                        .map(|()| true)
                        .map_err(|rule| Broken::Chain { queue, head, rule });
                }
                None => {
                    let more = self
                        .queue
                        .enable_notification(mem)
                        .map_err(|source| Broken::AvailRing { queue, source })?;
                    if !more {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Puts back the chain taken last: the next `pop` returns it again.
    pub(crate) fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    pub(crate) fn push_used(&mut self, mem: &GuestRam, head: u16, len: u32) -> Result<(), Broken> {
        let queue = self.index;
        self.used_since_signal = true;
        self.queue
            .add_used(mem, head, len)
            .map_err(|source| Broken::UsedRing { queue, source })
    }

    /// Says whether the driver wants an interrupt for what was used since the last call.
    pub(crate) fn take_interrupt_wish(&mut self, mem: &GuestRam) -> Result<bool, Broken> {
        if !std::mem::take(&mut self.used_since_signal) {
            return Ok(false);
        }
        let queue = self.index;
        self.queue
            .needs_notification(mem)
            .map_err(|source| Broken::UsedRing { queue, source })
    }

    /// Returns how many chains wait, and has the driver notify about the next one that it adds.
    pub(crate) fn watch(&mut self, mem: &GuestRam) -> Result<u16, Broken> {
        let queue = self.index;
        let broken = |source| Broken::AvailRing { queue, source };
        if !self.queue.ready() {
            return Ok(0);
        }
        let mut seen = self
            .queue
            .avail_idx(mem, Ordering::Acquire)
            .map_err(broken)?;
        if self.queue.event_idx_enabled() {
            // `avail_event`, past the used ring's entries (virtio 1.2 §2.7.8).
            let gpa = self.queue.used_ring() + 4 + 8 * u64::from(self.queue.size());
            mem.store(seen.0.to_le(), GuestAddress(gpa), Ordering::Relaxed)
                .map_err(|_| Broken::Memory { gpa })?;
            fence(Ordering::SeqCst);
            // What was added before the driver could see that is counted; its notification may
            // be missing, but nothing waits for it any more.
            seen = self
                .queue
                .avail_idx(mem, Ordering::Acquire)
                .map_err(broken)?;
        }
        Ok(seen.0.wrapping_sub(self.queue.next_avail()))
    }
}

fn check_chain(
    mem: &GuestRam,
    descriptors: virtio_queue::DescriptorChain<&GuestRam>,
    chain: &mut Chain,
    max_segments: usize,
) -> Result<(), &'static str> {
    let mut count = 0;
    let mut ended = false;
    for descriptor in descriptors {
        count += 1;
        if count > max_segments {
            return Err("has more segments than the device takes");
        }
        ended = !descriptor.has_next();
        let segment = Segment {
            gpa: descriptor.addr().0,
            len: descriptor.len(),
        };
        if segment.len == 0 {
            continue;
        }
        let in_ram = usize::try_from(segment.len)
            .is_ok_and(|len| GuestMemoryBackend::check_range(mem, descriptor.addr(), len));
        if !in_ram {
            return Err("points outside guest memory");
        }
        if descriptor.is_write_only() {
            chain.writable_len += u64::from(segment.len);
            chain.writable.push(segment);
        } else if chain.writable.is_empty() {
            chain.readable_len += u64::from(segment.len);
            chain.readable.push(segment);
        } else {
            return Err("has a readable segment after a writable one");
        }
    }
    // The iterator stops silently at a loop, a bad link, a bad indirect table or 4 GiB.
    if ended {
        Ok(())
    } else {
        Err("has a bad head, link or indirect table")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cut_across_segments() {
        let segments = [
            Segment {
                gpa: 0x1000,
                len: 10,
            },
            Segment {
                gpa: 0x3000,
                len: 4,
            },
            Segment {
                gpa: 0x5000,
                len: 100,
            },
        ];
        let cut = |offset, len| pieces(&segments, offset, len).collect::<Vec<_>>();
        assert_eq!(cut(0, 10), [(0x1000, 10)]);
        assert_eq!(cut(8, 10), [(0x1008, 2), (0x3000, 4), (0x5000, 4)]);
        assert_eq!(cut(10, 4), [(0x3000, 4)]);
        assert_eq!(cut(113, 5), [(0x5063, 1)]);
        assert_eq!(cut(114, 5), []);
        assert_eq!(cut(0, 0), []);
    }
}
