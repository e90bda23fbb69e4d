//! Exceptions as values.

/// An exception that an instruction raised; nothing of the instruction has been committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, where the vector has one.
    pub error: Option<u32>,
    /// Linear address of a page fault (goes to CR2), debug status of a #DB (goes to DR6).
    pub payload: u64,
}

impl Fault {
    /// #UD.
    pub const UNDEFINED: Self = Self::plain(6);
    /// #NM.
    pub const NO_FPU: Self = Self::plain(7);
    /// #DE.
    pub const DIVIDE: Self = Self::plain(0);

    /// An exception without error code.
    pub const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error: None,
            payload: 0,
        }
    }

    /// #GP with an error code (0 or a selector).
    pub const fn protection(error: u32) -> Self {
        Self {
            vector: 13,
            error: Some(error),
            payload: 0,
        }
    }

    /// #PF: error code as in SDM 3A 4.7 and the linear address.
    pub const fn page(error: u32, address: u64) -> Self {
        Self {
            vector: 14,
            error: Some(error),
            payload: address,
        }
    }
}
