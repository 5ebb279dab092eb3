//! Adds up what libtest-style runners report. Pure: one line in, numbers out.

use std::fmt;

/// How many tests did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tests that passed.
    pub(crate) passed: u32,
    /// Tests that failed.
    pub(crate) failed: u32,
    /// Tests that were skipped.
    pub(crate) ignored: u32,
    /// Result lines seen: zero means that no test program came to its end.
    pub(crate) results: u32,
}

impl Counts {
    /// Takes in one line of output; lines that are no `test result:` change nothing.
    pub(crate) fn line(&mut self, line: &str) {
        let Some(rest) = line.trim().strip_prefix("test result: ") else { return };
        self.results += 1;
        for (number, word) in rest.split(';').filter_map(count_in) {
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// The last "`<number> <word>`" of a part such as `ok. 3 passed` or ` 0 failed`.
fn count_in(part: &str) -> Option<(u32, &str)> {
    let mut words = part.split_whitespace().rev();
    let word = words.next()?;
    Some((words.next()?.parse().ok()?, word))
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.ignored > 0 {
            write!(f, ", {} skipped", self.ignored)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn adds_up_several_programs() {
        let mut counts = Counts::default();
        counts.line("running 3 tests");
        counts.line(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s",
        );
        counts.line("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\r");
        assert_eq!(counts, Counts { passed: 4, failed: 2, ignored: 1, results: 2 });
    }
}
