//! Reading addresses from a program's context.
//!
//! The verifier accepts only loads at a constant offset, 32 bits at a time. Both families' words are therefore read
//! unconditionally and chosen between afterwards (`Ip::from_context`): behind a branch, the compiler merges the loads of
//! the two arms into one with a variable offset.

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
