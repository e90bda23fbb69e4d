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
    /// #OF.
    pub const OVERFLOW: Self = Self::plain(4);
    /// #BR.
    pub const BOUND: Self = Self::plain(5);
    /// #MF.
    pub const X87: Self = Self::plain(16);
    /// #AC.
    pub const ALIGNMENT: Self = Self {
        vector: 17,
        error: Some(0),
        payload: 0,
    };
    /// #XM.
    pub const SIMD: Self = Self::plain(19);

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

    /// #SS with an error code (0 or a selector).
    pub const fn stack(error: u32) -> Self {
        Self::with_error(12, error)
    }

    /// #NP with a selector.
    pub const fn not_present(selector: u32) -> Self {
        Self::with_error(11, selector)
    }

    /// #TS with a selector.
    pub const fn task_segment(selector: u32) -> Self {
        Self::with_error(10, selector)
    }

    /// #DB with bits for DR6.
    pub const fn debug(status: u64) -> Self {
        Self {
            vector: 1,
            error: None,
            payload: status,
        }
    }

    /// The fault of an access through the stack segment: a non-canonical address or a limit is #SS(0)
    /// there, where it is #GP(0) elsewhere.
    #[must_use]
    pub const fn on_stack(self) -> Self {
        match (self.vector, self.error) {
            (13, Some(0)) => Self::stack(0),
            _ => self,
        }
    }

    const fn with_error(vector: u8, error: u32) -> Self {
        Self {
            vector,
            error: Some(error),
            payload: 0,
        }
    }
}
