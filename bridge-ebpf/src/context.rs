//! Reading addresses from a program's context.
//!
//! The verifier accepts only loads at a constant offset, 32 bits at a time. Both families' words are therefore read
//! unconditionally and chosen between afterwards: behind a branch, the compiler merges the loads of the two arms into
//! one with a variable offset.

use bridge_common::Ip;

/// `AF_INET`.
pub(crate) const AF_INET: u32 = 2;

/// Reads four context words.
///
/// # Safety
/// `words` points to four readable context words.
#[inline(always)]
pub(crate) unsafe fn words(words: *const [u32; 4]) -> [u32; 4] {
    let word = words.cast::<u32>();
    // SAFETY: the caller's promise.
    unsafe { [0, 1, 2, 3].map(|i| word.add(i).read_volatile()) }
}

/// The address in the words that belong to the context's family.
#[inline(always)]
pub(crate) fn ip(is_v4: bool, (v4, v6): (u32, [u32; 4])) -> Ip {
    if is_v4 { Ip::from_v4_word(v4) } else { Ip { words: v6 } }
}
