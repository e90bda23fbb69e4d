//! Who gets an interrupt message: destinations of inter-processor and message-signalled interrupts
//! (SDM 3A 11.6.2, 11.11, 11.12.9).

use std::sync::atomic::{AtomicUsize, Ordering};

use super::inbox::Inbox;

/// How a message is delivered (SDM 3A 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    Fixed,
    LowestPriority,
    Nmi,
    Init,
    Startup,
    /// System management, external controller, reserved: nothing takes them here.
    Other,
}

impl Delivery {
    /// Reads bits 10 to 8 of an ICR or of message data.
    pub(crate) fn of_bits(bits: u32) -> Self {
        match bits >> 8 & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            _ => Self::Other,
        }
    }
}

/// Destination of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// One by its id; 0xff of a narrow message and all ones of a wide one mean everybody.
    Physical {
        id: u32,
        wide: bool,
    },
    /// Many by logical ids.
    Logical {
        mask: u32,
        wide: bool,
    },
    Only(usize),
    Everybody,
    EverybodyBut(usize),
}

/// A message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) destination: Destination,
    pub(crate) delivery: Delivery,
    pub(crate) vector: u8,
    pub(crate) level: bool,
}

impl Message {
    /// Reads a message-signalled interrupt (SDM 3A 11.11); `None` where it is not addressed to local
    /// APICs. Bits 11 to 5 of the address extend the destination as KVM has it.
    pub(crate) fn of_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        let (low, high) = (address >> 12 & 0xff, address >> 5 & 0x7f);
        let id = u32::try_from(low | high << 8).ok()?;
        let destination = if address & 1 << 2 != 0 {
            Destination::Logical {
                mask: id,
                wide: false,
            }
        } else {
            Destination::Physical { id, wide: false }
        };
        let mut delivery = Delivery::of_bits(data);
        // Redirection hint: one of the destinations is enough.
        if delivery == Delivery::Fixed && address & 1 << 3 != 0 {
            delivery = Delivery::LowestPriority;
        }
        Some(Self {
            destination,
            delivery,
            vector: data as u8,
            level: data & 1 << 15 != 0,
        })
    }
}

/// All local APICs of a VM.
#[derive(Debug)]
pub(crate) struct Apics {
    inboxes: Box<[Inbox]>,
    /// Whose turn it is among equals.
    turn: AtomicUsize,
}

impl Apics {
    pub(crate) fn new(count: u8) -> Self {
        Self {
            inboxes: (0..count).map(Inbox::new).collect(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Number of processors.
    pub(crate) fn count(&self) -> usize {
        self.inboxes.len()
    }

    /// The inbox of processor `index`, which is below the number of processors.
    pub(crate) fn inbox(&self, index: u8) -> &Inbox {
        &self.inboxes[usize::from(index)]
    }

    fn matches(inbox: &Inbox, index: usize, destination: Destination) -> bool {
        let state = inbox.addressing();
        // Start-up messages and NMIs reach an APIC that software has not enabled, but none that is
        // off altogether.
        if !state.enabled {
            return false;
        }
        match destination {
            Destination::Only(one) => index == one,
            Destination::Everybody => true,
            Destination::EverybodyBut(one) => index != one,
            Destination::Physical { id, wide } => {
                let everybody = id == if wide { u32::MAX } else { 0xff };
                everybody || id == u32::from(inbox.id)
            }
            Destination::Logical { mask, wide } if state.x2apic => {
                if wide && mask == u32::MAX {
                    return true;
                }
                let (cluster, bits) = (mask >> 16, mask & 0xffff);
                cluster == u32::from(inbox.id) >> 4 && bits & 1 << (inbox.id & 15) != 0
            }
            Destination::Logical { mask, .. } => {
                let mask = mask as u8;
                if state.flat {
                    return mask & state.logical != 0;
                }
                let same = mask >> 4 == 15 || mask >> 4 == state.logical >> 4;
                same && mask & state.logical & 15 != 0
            }
        }
    }

    /// Sends `message`; returns whether somebody took it.
    pub(crate) fn send(&self, message: Message) -> bool {
        let matching = || {
            self.inboxes
                .iter()
                .enumerate()
                .filter(move |(index, inbox)| Self::matches(inbox, *index, message.destination))
                .map(|(_, inbox)| inbox)
        };
        let to_all = |act: &dyn Fn(&Inbox) -> bool| {
            // Not `any`: all of them get it.
            matching().fold(false, |taken, inbox| act(inbox) | taken)
        };
        match message.delivery {
            Delivery::Fixed => to_all(&|inbox| inbox.request(message.vector, message.level)),
            Delivery::LowestPriority => {
                let ready = || matching().filter(|inbox| inbox.addressing().accepts);
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                let chosen = turn.checked_rem(ready().count());
                let inbox = chosen.and_then(|turn| ready().nth(turn));
                inbox.is_some_and(|inbox| inbox.request(message.vector, message.level))
            }
            Delivery::Nmi => to_all(&|inbox| {
                inbox.request_nmi();
                true
            }),
            Delivery::Init => to_all(&|inbox| {
                inbox.request_init();
                true
            }),
            Delivery::Startup => to_all(&|inbox| {
                inbox.request_startup(message.vector);
                true
            }),
            Delivery::Other => false,
        }
    }
}
