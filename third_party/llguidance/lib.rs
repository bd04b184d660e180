//! The C interface of llguidance (`llguidance.h` of the crate) as a static library; nothing is added.
pub use llguidance::ffi::*;
