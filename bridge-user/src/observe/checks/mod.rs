//! What findings say: one file for each family of them, one function for each code.
//!
//! Invariants: pure; whether something is a finding is decided by who calls, `readiness` for example.

pub mod advice;
pub mod serving;
pub mod stages;
pub mod steering;
pub mod surroundings;

/// Sources that a line shows of a list.
const SHOWN: usize = 4;
