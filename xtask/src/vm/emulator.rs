//! Tells from the kernel's messages when QEMU ran a breakpoint that is in memory no more. Pure: lines in, a verdict
//! out.
//!
//! Where Linux patches its code (static keys, tracepoints) a breakpoint, int3, guards the place until the new
//! instruction is written. QEMU's emulation may run that breakpoint on another processor after the kernel has removed
//! it, and again each time the kernel goes back to the place (QEMU 7.2 and 8.0;
//! <https://github.com/multipath-tcp/mptcp_net-next/issues/471>). A kernel that takes it for a breakpoint removed
//! just now goes back (seen on 6.1.192) and stands there for ever; a newer one (seen on 6.12.117) dies. The code in
//! the kernel's report, which is read from memory, shows that there is no breakpoint.

/// A breakpoint in the kernel that belongs to nobody; newer kernels put "Oops: " before it.
pub(super) const BREAKPOINT: &str = "int3: 0000 [#1]";
/// A processor that does not get on.
const STANDSTILL: &[&str] = &["soft lockup", "self-detected stall"];

/// What was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    Breakpoint,
    Standstill,
}

/// What has been read so far.
#[derive(Debug, Default)]
pub(super) struct Emulator {
    /// The report that goes on, until its code has come.
    report: Option<Report>,
    /// Where the processor is in it.
    place: String,
    /// Where it stood in the last report of a standstill, if that is no place to stand.
    stood: String,
    failed: bool,
}

impl Emulator {
    /// Takes in one line of the kernel's.
    pub(super) fn line(&mut self, line: &str) {
        if line.contains(BREAKPOINT) {
            self.report = Some(Report::Breakpoint);
        } else if STANDSTILL.iter().any(|sign| line.contains(sign)) {
            self.report = Some(Report::Standstill);
        } else if let Some((_, place)) = line.split_once("RIP: ") {
            place.clone_into(&mut self.place);
        } else if let (Some(report), Some((_, code))) = (self.report, line.split_once("Code: ")) {
            self.report = None;
            self.failed |= self.judge(report, code);
        }
    }

    /// Whether the emulator is to blame.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    /// The byte at the program counter is in angle brackets. After a breakpoint that is the byte behind it.
    fn judge(&mut self, report: Report, code: &str) -> bool {
        let Some((before, at)) = code.split_once('<') else { return false };
        if report == Report::Breakpoint {
            return !before.trim_end().ends_with("cc");
        }
        let stood = if leads_on(&at.replacen('>', "", 1)) { self.place.clone() } else { String::new() };
        let again = !stood.is_empty() && stood == self.stood;
        self.stood = stood;
        again
    }
}

/// Whether the instruction is one of those that Linux patches in, and no processor can stand at: nothing, or a jump
/// forward.
fn leads_on(code: &str) -> bool {
    const NOTHING: [&[u8]; 2] = [&[0x66, 0x90], &[0x0f, 0x1f, 0x44, 0x00, 0x00]];
    let bytes: Vec<u8> = code.split(' ').map_while(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    match bytes[..] {
        [0xeb, distance, ..] | [0xe9, _, _, _, distance, ..] => distance < 0x80,
        _ => NOTHING.iter().any(|nothing| bytes.starts_with(nothing)),
    }
}

#[cfg(test)]
mod tests {
    use super::Emulator;

    fn failed(lines: &[&str]) -> bool {
        let mut emulator = Emulator::default();
        lines.iter().for_each(|line| emulator.line(line));
        emulator.failed()
    }

    #[test]
    fn only_a_breakpoint_that_is_not_in_the_code_is_the_emulators() {
        let header = "[    4.0] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI";
        let old_header = "[    3.0] int3: 0000 [#1] PREEMPT SMP NOPTI";
        assert!(failed(&[header, "[    4.0] Code: 41 29 5e 04 e8 a9 ee ff ff eb <5d> 85 ed 0f 8e a7"]));
        assert!(failed(&[old_header, "[    3.0] Code: 41 8b 4f 20 66 <90> f7 c1"]));
        assert!(!failed(&[header, "[    4.0] Code: 41 29 5e 04 e8 a9 ee ff ff cc <5d> 85 ed 0f 8e a7"]));
        assert!(!failed(&[header, "[    4.0] Code: Unable to access opcode bytes at 0xffffffffffffffd6."]));
        let oops = "[    4.0] Oops: 0000 [#1] PREEMPT SMP NOPTI";
        assert!(!failed(&[oops, "[    4.0] Code: 41 29 5e 04 e8 a9 ee ff ff eb <5d> 85 ed 0f 8e a7"]));
    }

    const STALL: &str = "[  175.3] rcu: INFO: rcu_preempt self-detected stall on CPU";
    const LOCKUP: &str = "[  200.6] watchdog: BUG: soft lockup - CPU#0 stuck for 44s! [bridge-user:1039]";
    const HERE: &str = "[  175.3] RIP: 0010:ip_local_deliver+0x5c/0x110";
    const NOTHING: &str = "[  175.3] Code: ae 00 00 00 4c 8b 63 10 <66> 90 48 8b 44 24 30 65";

    #[test]
    fn a_processor_that_stands_where_none_can_is_the_emulators() {
        let here_again = "[  200.6] RIP: 0010:ip_local_deliver+0x5c/0x110";
        assert!(failed(&[STALL, HERE, NOTHING, LOCKUP, here_again, NOTHING]));
        // It may pass there once.
        assert!(!failed(&[STALL, HERE, NOTHING]));
        let there = "[  200.6] RIP: 0010:ip_local_deliver+0x58/0x110";
        assert!(!failed(&[STALL, HERE, NOTHING, LOCKUP, there, NOTHING]));
    }

    #[test]
    fn a_processor_may_stand_in_a_loop() {
        let twice = |code| failed(&[STALL, HERE, code, LOCKUP, HERE, code]);
        assert!(!twice("[    4.0] Code: 85 c0 75 f8 <f3> 90 eb fc"), "a spinning lock");
        assert!(!twice("[    4.0] Code: 85 c0 f3 90 <eb> fc 90"), "a jump back");
        assert!(!twice("[    4.0] Code: 85 c0 f3 90 <e9> fc ff ff ff"), "a jump back");
        assert!(twice("[    4.0] Code: 85 c0 f3 90 <e9> fc 00 00 00"), "a jump forward");
        assert!(twice("[    4.0] Code: 85 c0 f3 90 <0f> 1f 44 00 00 85"), "nothing, in five bytes");
    }
}
