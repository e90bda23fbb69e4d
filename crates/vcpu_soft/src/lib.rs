//! The software engine: `x86_cpu` behind the seam `vcpu`.

#![forbid(unsafe_code)]
