//! How the tables say what runs an instruction.

use crate::{Arguments, FpFault, FpState, Outside};

/// What runs an instruction.
pub(crate) type Run = fn(&mut FpState, &mut Outside<'_>, Arguments) -> Result<(), FpFault>;

/// What happens to a memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Load,
    Store,
    Both,
}

/// What runs an instruction with a register and with a memory operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub register: Option<Run>,
    pub memory: Option<(Direction, Run)>,
}

impl Entry {
    /// The second operand is a register or loaded.
    pub const fn load(register: Run, memory: Run) -> Self {
        Self {
            register: Some(register),
            memory: Some((Direction::Load, memory)),
        }
    }

    /// The first operand is a register or stored.
    pub const fn store(register: Run, memory: Run) -> Self {
        Self {
            register: Some(register),
            memory: Some((Direction::Store, memory)),
        }
    }

    /// There is no memory operand.
    pub const fn register(register: Run) -> Self {
        Self {
            register: Some(register),
            memory: None,
        }
    }

    /// There is always one.
    pub const fn memory(direction: Direction, memory: Run) -> Self {
        Self {
            register: None,
            memory: Some((direction, memory)),
        }
    }
}

/// Makes a table of a function with two constant parameters: a row for each of the first, in it an
/// entry for each of the second.
macro_rules! each_constant {
    ($function:ident as $type:ty, [$($first:literal)*] $seconds:tt) => {
        [$(each_constant!(@row $function $type, $first $seconds)),*]
    };
    (@row $function:ident $type:ty, $first:literal [$($second:literal)*]) => {
        [$($function::<$first, $second> as $type),*]
    };
}

pub(crate) use each_constant;
