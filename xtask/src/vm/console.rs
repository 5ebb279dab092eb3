//! Reads what a guest says and judges it. Pure: lines in, problems out.

use crate::{
    counts::Counts,
    vm::{
        emulator::{self, Emulator},
        seen::{self, Rows},
    },
};

/// Signs of a kernel bug in the kernel's own messages.
const TROUBLE: &[&str] = &[
    "Kernel panic",
    "BUG:",
    "Oops:",
    emulator::BREAKPOINT,
    "WARNING: CPU",
    "general protection fault",
    "detected stall",
    "self-detected stall",
    "soft lockup",
    "blocked for more than",
    "unregister_netdevice: waiting for",
    "KVM internal error",
];

/// Functions whose warnings are a known bug of the kernel that nothing here can avoid. They are reported and fail
/// nothing.
///
/// - `inet_sock_destruct`: a socket that was in a socket map ends with its memory accounts not at zero
///   (net/ipv4/af_inet.c), seen now and then on 6.1.192, 6.12.117 and 7.2.12 when the sockmap relay is used.
const KNOWN: &[&str] = &["inet_sock_destruct"];

/// Who wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The kernel, on the first serial port (and QEMU itself).
    Kernel,
    /// The suite and init, on the second.
    Suite,
}

impl Source {
    /// How the line is marked in the log.
    pub(super) fn mark(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Suite => "suite",
        }
    }
}

/// How the run of the virtual machine came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The machine went off.
    Off,
    /// It was stopped after this many seconds.
    TimedOut(u64),
    /// It was stopped because the emulator failed.
    Emulator,
}

/// How much of the suite was to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All of it.
    Whole,
    /// What a filter left, or another program in its place.
    Part,
}

/// What has been seen so far.
#[derive(Debug, Default)]
pub(super) struct Console {
    /// The suite's own numbers.
    pub(super) counts: Counts,
    /// Which datapath served what.
    pub(super) served: Rows,
    started: bool,
    exit: Option<String>,
    trouble: Vec<String>,
    emulator: Emulator,
    known: Vec<String>,
    failed: Vec<String>,
    telling: bool,
    told: Vec<String>,
    unreadable: Vec<String>,
    last: String,
}

impl Console {
    /// Takes in one line.
    pub(super) fn line(&mut self, source: Source, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        line.trim().clone_into(&mut self.last);
        if source == Source::Kernel {
            self.emulator.line(line);
        }
        match source {
            Source::Kernel if is_trouble(line) && KNOWN.iter().any(|name| line.contains(name)) => {
                self.known.push(line.trim().to_owned());
            }
            Source::Kernel if is_trouble(line) => self.trouble.push(line.trim().to_owned()),
            Source::Kernel => {}
            Source::Suite => self.suite_line(line.trim()),
        }
    }

    fn suite_line(&mut self, line: &str) {
        self.counts.line(line);
        if let Err(unreadable) = seen::take(line, &mut self.served) {
            self.unreadable.push(unreadable);
        }
        if line.starts_with("BRIDGE-VM-START") {
            self.started = true;
        } else if let Some(exit) = line.strip_prefix("BRIDGE-VM-OUTCOME exit=") {
            self.exit = Some(exit.to_owned());
        } else if line.starts_with("BRIDGE-VM-MODULE") {
            self.trouble.push(line.to_owned());
        } else if let Some(name) = line.strip_prefix("test ").and_then(|test| test.strip_suffix("FAILED")) {
            self.failed.push(name.trim_end_matches([' ', '.']).to_owned());
        } else if line == "failures:" {
            // The first one heads what each failed test says, the second one a list of their names.
            self.telling = self.told.is_empty();
        } else if self.telling {
            self.told.push(line.to_owned());
        }
    }

    /// Whether the suite has begun.
    pub(super) fn started(&self) -> bool {
        self.started
    }

    /// Whether the guest's end is the emulator's fault, and says nothing about the kernel or the suite.
    pub(super) fn emulator_failed(&self) -> bool {
        self.emulator.failed()
    }

    /// Whether the outcome line has been seen.
    pub(super) fn finished(&self) -> bool {
        self.exit.is_some()
    }

    /// Warnings of the kernel that were expected to come sooner or later.
    pub(super) fn known_warnings(&self) -> &[String] {
        &self.known
    }

    /// Everything that is wrong with the run. What is skipped the suite answers for.
    pub(super) fn problems(&self, end: End) -> Vec<String> {
        let mut problems: Vec<String> =
            self.trouble.iter().map(|line| format!("the kernel says: {line}")).collect();
        problems.extend(self.failed.iter().map(|test| format!("test failed: {test}")));
        problems.extend(self.told.iter().map(|line| format!("  {line}")));
        problems
            .extend(self.unreadable.iter().map(|why| format!("failed to read a line of the suite: {why}")));
        match (&self.exit, end) {
            (None, End::TimedOut(seconds)) => {
                problems.push(format!("no outcome within {seconds} s; the last line was: {}", self.last));
            }
            (None, End::Emulator) => {
                problems.push(format!("the emulator failed; the last line was: {}", self.last));
            }
            (None, End::Off) => {
                problems.push(format!(
                    "the machine went off without an outcome; the last line was: {}",
                    self.last
                ));
            }
            (Some(_), _) if self.counts.results == 0 => {
                problems.push("the suite printed no test result".to_owned())
            }
            (Some(exit), _) if exit != "0" => problems.push(format!("the suite ended with exit code {exit}")),
            (Some(_), _) if self.counts.passed == 0 => problems.push("the suite ran no test".to_owned()),
            (Some(_), _) => {}
        }
        problems
    }
}

fn is_trouble(line: &str) -> bool {
    // Since 6.18 warnings name the place first: "WARNING: net/core/sock.c:1 at sk_free…".
    let placed_warning = line.contains("WARNING: ") && line.contains(" at ") && line.contains(".c:");
    placed_warning || TROUBLE.iter().any(|sign| line.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::{Console, End, Source};

    fn seen(lines: &[(Source, &str)]) -> Console {
        let mut console = Console::default();
        for (source, line) in lines {
            console.line(*source, line);
        }
        console
    }

    const GOOD: &[(Source, &str)] = &[
        (Source::Kernel, "[    0.1] Spectre V2 : WARNING: Unprivileged eBPF is enabled"),
        (Source::Suite, "BRIDGE-VM-START 6.1.0\r"),
        (Source::Suite, "test netns::steers ... ok\r"),
        (Source::Suite, "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\r"),
        (Source::Suite, "BRIDGE-VM-OUTCOME exit=0\r"),
    ];

    #[test]
    fn a_good_run_has_no_problems() {
        let console = seen(GOOD);
        assert!(console.started() && console.finished());
        assert_eq!(console.problems(End::Off), Vec::<String>::new());
    }

    #[test]
    fn what_was_served_is_collected() {
        let mut lines = GOOD.to_vec();
        lines.push((Source::Suite, "served: ipv4 | auto | steer\r"));
        // The kernel's own lines are nobody's result.
        lines.push((Source::Kernel, "served: ipv6 | auto | steer"));
        let console = seen(&lines);
        assert_eq!((console.served.len(), console.served["ipv4"]["auto"].as_str()), (1, "steer"));
        assert_eq!(console.problems(End::Off), Vec::<String>::new());
        lines.push((Source::Suite, "served: ipv6 | au"));
        let problems = seen(&lines).problems(End::Off);
        assert!(problems.len() == 1 && problems[0].contains("served: ipv6 | au"), "{problems:?}");
    }

    #[test]
    fn kernel_trouble_fails_a_good_run() {
        for line in [
            "[  3.1] WARNING: CPU: 0 PID: 80 at net/core/sock.c:1 sk_free",
            "[  3.1] WARNING: net/core/sock.c:1 at sk_free+0x1/0x2, CPU#0: redis/80",
            "[  3.1] BUG: kernel NULL pointer dereference",
        ] {
            let mut lines = GOOD.to_vec();
            lines.push((Source::Kernel, line));
            assert_eq!(seen(&lines).problems(End::Off), [format!("the kernel says: {line}")]);
        }
    }

    #[test]
    fn a_known_warning_is_told_and_fails_nothing() {
        let line = "[ 9.1] WARNING: CPU: 1 PID: 7 at net/ipv4/af_inet.c:154 inet_sock_destruct+0x1/0x2";
        let mut lines = GOOD.to_vec();
        lines.push((Source::Kernel, line));
        let console = seen(&lines);
        assert_eq!(console.problems(End::Off), Vec::<String>::new());
        assert_eq!(console.known_warnings(), [line]);
    }

    #[test]
    fn silence_is_a_problem() {
        let panic = "[ 2.0] Kernel panic - not syncing: Fatal exception";
        let console = seen(&[GOOD[1], (Source::Kernel, panic)]);
        assert_eq!(
            console.problems(End::Off),
            [
                format!("the kernel says: {panic}"),
                format!("the machine went off without an outcome; the last line was: {panic}"),
            ]
        );
        let console = seen(&GOOD[..3]);
        assert_eq!(
            console.problems(End::TimedOut(9)),
            ["no outcome within 9 s; the last line was: test netns::steers ... ok"]
        );
    }

    #[test]
    fn an_exit_code_alone_proves_nothing() {
        let console = seen(&[GOOD[1], GOOD[4]]);
        assert_eq!(console.problems(End::Off), ["the suite printed no test result"]);
        let console = seen(&[
            GOOD[1],
            (Source::Suite, "test netns::scope ... FAILED"),
            (Source::Suite, "failures:\r"),
            (Source::Suite, "---- netns::scope ----\r"),
            (Source::Suite, "the port is still open\r"),
            (Source::Suite, "failures:\r"),
            (Source::Suite, "    netns::scope\r"),
            (Source::Suite, "test result: FAILED. 0 passed; 1 failed; 0 ignored"),
            (Source::Suite, "BRIDGE-VM-OUTCOME exit=101"),
        ]);
        assert_eq!(
            console.problems(End::Off),
            [
                "test failed: netns::scope",
                "  ---- netns::scope ----",
                "  the port is still open",
                "the suite ended with exit code 101"
            ]
        );
    }
}
