//! A busybox that works where there are no libraries: in the suite's containers and in guests.

use std::{fs, path::PathBuf};

use crate::exec;

/// The kind of an ELF segment that names the dynamic loader.
const PT_INTERP: u32 = 3;

/// The first static busybox of this machine. Debian also has a dynamic one, in the package `busybox`.
pub(crate) fn busybox() -> Option<PathBuf> {
    exec::all_called("busybox").find(|candidate| fs::read(candidate).is_ok_and(|elf| is_static(&elf)))
}

/// Whether the program asks for no dynamic loader. Unlike ldd, this does not run it.
fn is_static(elf: &[u8]) -> bool {
    segments(elf).is_some_and(|kinds| !kinds.contains(&PT_INTERP))
}

/// The kinds of a program's segments; nothing unless it is ELF with 64 bits, the low byte first, as on every machine
/// that this builds on.
fn segments(elf: &[u8]) -> Option<Vec<u32>> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let start = usize::try_from(u64::from_le_bytes(field(elf, 0x20)?)).ok()?;
    let size = usize::from(u16::from_le_bytes(field(elf, 0x36)?));
    let count = usize::from(u16::from_le_bytes(field(elf, 0x38)?));
    (0..count).map(|index| Some(u32::from_le_bytes(field(elf, start.checked_add(index * size)?)?))).collect()
}

fn field<const SIZE: usize>(elf: &[u8], at: usize) -> Option<[u8; SIZE]> {
    elf.get(at..at.checked_add(SIZE)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::{PT_INTERP, is_static};

    const PT_LOAD: u32 = 1;

    /// A program with segments of these kinds, and nothing in them.
    fn program(kinds: &[u32]) -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64, 0);
        elf[0x20] = 64;
        elf[0x36] = 56;
        elf[0x38] = u8::try_from(kinds.len()).unwrap();
        for kind in kinds {
            elf.extend(kind.to_le_bytes());
            elf.extend([0; 52]);
        }
        elf
    }

    #[test]
    fn a_static_program_names_no_loader() {
        assert!(is_static(&program(&[PT_LOAD, PT_LOAD])));
        assert!(!is_static(&program(&[PT_LOAD, PT_INTERP])));
    }

    #[test]
    fn what_cannot_be_read_is_not_static() {
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(&program(&[PT_LOAD])[..64]));
        let mut far = program(&[PT_LOAD]);
        far[0x20..0x28].fill(0xff);
        assert!(!is_static(&far));
    }
}
