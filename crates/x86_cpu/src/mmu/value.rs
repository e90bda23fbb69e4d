//! Integers as guest memory holds them, and single host accesses to them.

#![expect(unsafe_code, reason = "single host accesses to guest RAM")]

use std::arch::asm;

/// An integer that one access moves.
pub(crate) trait Value: Copy + PartialEq + Default {
    /// Its bytes.
    const SIZE: u64;

    /// Reads it; one access of the host for up to eight bytes.
    ///
    /// # Safety
    ///
    /// `host` is mapped guest RAM for `SIZE` bytes; it need not be aligned.
    unsafe fn load(host: u64) -> Self;

    /// Writes it; one access of the host for up to eight bytes.
    ///
    /// # Safety
    ///
    /// As for [`load`](Self::load).
    unsafe fn store(self, host: u64);

    /// Replaces `old` with `new`, atomically; otherwise returns what is there.
    ///
    /// # Safety
    ///
    /// As for [`load`](Self::load); 16-byte values are aligned.
    unsafe fn exchange(host: u64, old: Self, new: Self) -> Result<(), Self>;

    /// Makes it of the first bytes of `bytes`.
    fn from_bytes(bytes: &[u8; 16]) -> Self;

    /// Its bytes, little endian, padded.
    fn bytes(self) -> [u8; 16];
}

/// Lets a volatile access be unaligned.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<T>(T);

/// Widths differ in nothing but the operand's name in `cmpxchg`.
macro_rules! value {
    ($type:ty, $class:ident, $operand:tt, $accumulator:tt) => {
        impl Value for $type {
            const SIZE: u64 = size_of::<Self>() as u64;

            #[inline(always)]
            unsafe fn load(host: u64) -> Self {
                // SAFETY: the caller vouches for the memory; the type is packed.
                unsafe { (host as *const Unaligned<Self>).read_volatile() }.0
            }

            #[inline(always)]
            unsafe fn store(self, host: u64) {
                // A volatile write of an unaligned type goes by way of the stack.
                // SAFETY: the caller vouches for the memory; the instruction touches nothing else.
                unsafe {
                    asm!(
                        concat!("mov [{host}], ", $operand),
                        host = in(reg) host,
                        new = in($class) self,
                        options(nostack, preserves_flags),
                    );
                }
            }

            #[inline(always)]
            unsafe fn exchange(host: u64, old: Self, new: Self) -> Result<(), Self> {
                let found: Self;
                // SAFETY: the caller vouches for the memory; the instruction touches nothing else.
                unsafe {
                    asm!(
                        concat!("lock cmpxchg [{host}], ", $operand),
                        host = in(reg) host,
                        new = in($class) new,
                        inout($accumulator) old => found,
                        options(nostack),
                    );
                }
                if found == old { Ok(()) } else { Err(found) }
            }

            fn from_bytes(bytes: &[u8; 16]) -> Self {
                u128::from_le_bytes(*bytes) as Self
            }

            fn bytes(self) -> [u8; 16] {
                u128::from(self).to_le_bytes()
            }
        }
    };
}

value!(u8, reg_byte, "{new}", "al");
value!(u16, reg, "{new:x}", "ax");
value!(u32, reg, "{new:e}", "eax");
value!(u64, reg, "{new:r}", "rax");

impl Value for u128 {
    const SIZE: u64 = 16;

    #[inline(always)]
    unsafe fn load(host: u64) -> Self {
        // SAFETY: the caller vouches for both halves.
        let (low, high) = unsafe { (u64::load(host), u64::load(host + 8)) };
        Self::from(low) | Self::from(high) << 64
    }

    #[inline(always)]
    unsafe fn store(self, host: u64) {
        // SAFETY: the caller vouches for both halves.
        unsafe {
            (self as u64).store(host);
            ((self >> 64) as u64).store(host + 8);
        }
    }

    unsafe fn exchange(host: u64, old: Self, new: Self) -> Result<(), Self> {
        let (low, high): (u64, u64);
        // SAFETY: the caller vouches for the memory and its alignment. RBX, which the compiler keeps
        // for itself, is put back.
        unsafe {
            asm!(
                "xchg rbx, rsi",
                "lock cmpxchg16b [rdi]",
                "mov rbx, rsi",
                in("rdi") host,
                inout("rsi") new as u64 => _,
                in("rcx") (new >> 64) as u64,
                inout("rax") old as u64 => low,
                inout("rdx") (old >> 64) as u64 => high,
                options(nostack),
            );
        }
        let found = Self::from(low) | Self::from(high) << 64;
        if found == old { Ok(()) } else { Err(found) }
    }

    fn from_bytes(bytes: &[u8; 16]) -> Self {
        Self::from_le_bytes(*bytes)
    }

    fn bytes(self) -> [u8; 16] {
        self.to_le_bytes()
    }
}
