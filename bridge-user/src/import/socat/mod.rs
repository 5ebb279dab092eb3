//! A command line of socat(1) as a forward. Pure.
//!
//! Invariants: every option is known by name, and either changes nothing for an attachment, or is part of the forward,
//! or is the reason why it is left alone; one that is not known is such a reason.

mod address;
mod options;
mod text;

use self::address::{Address, Family, Kind};
use super::Forward;

/// Options of the program that take a value, in the same word or the next.
const WITH_VALUE: [char; 8] = ['b', 'L', 'R', 'r', 'S', 't', 'T', 'W'];
/// What the arguments, without the program, forward.
///
/// # Errors
/// Why it is left alone.
pub fn parse(arguments: &[String]) -> Result<Forward, String> {
    let mut program = Program::default();
    let addresses = program.options(arguments)?;
    let [listen, connect] = addresses else {
        return Err(format!("it has {} addresses, expected two", addresses.len()));
    };
    let (listener, target) = (Address::parse(listen)?, Address::parse(connect)?);
    let Kind::Listen(family) = listener.kind()? else {
        return Err(format!("{} does not wait for connections", listener.keyword));
    };
    let family = program.family.filter(|_| family == Family::Any).unwrap_or(family);
    let target = target.target()?;
    listener.forward(family, target, program.idle_timeout)
}

/// What stands before the addresses.
#[derive(Default)]
struct Program {
    idle_timeout: Option<u64>,
    family: Option<Family>,
}

impl Program {
    /// Reads the options and returns the rest.
    fn options<'a>(&mut self, arguments: &'a [String]) -> Result<&'a [String], String> {
        let mut rest = arguments;
        while let [first, after @ ..] = rest {
            let Some(option) = first.strip_prefix('-').filter(|option| !option.is_empty()) else { break };
            rest = after;
            let mut letters = option.chars();
            let letter = letters.next().unwrap_or_default();
            let mut value = letters.as_str();
            if WITH_VALUE.contains(&letter) && value.is_empty() {
                let (next, after) =
                    rest.split_first().ok_or_else(|| format!("option -{letter} has no value"))?;
                (value, rest) = (next.as_str(), after);
            }
            self.option(letter, value)?;
        }
        Ok(rest)
    }

    fn option(&mut self, letter: char, value: &str) -> Result<(), String> {
        match letter {
            'T' => {
                let seconds = value.parse::<f64>().ok().filter(|seconds| (0.0..=1e9).contains(seconds));
                let seconds =
                    seconds.ok_or_else(|| format!("option -T has the value {value}, expected seconds"))?;
                self.idle_timeout = Some(seconds.ceil() as u64).filter(|seconds| *seconds > 0);
            }
            '4' => self.family = Some(Family::V4),
            '6' => self.family = Some(Family::V6),
            'u' | 'U' => return Err(format!("it moves bytes in one direction only (-{letter})")),
            'r' | 'R' => return Err(format!("it writes what it moves into a file (-{letter})")),
            'v' | 'x' => return Err(format!("it prints what it moves (-{letter})")),
            'd' | 'D' | 'l' | 'b' | 's' | 't' | 'S' | 'L' | 'W' | 'g' | 'h' | '0' => {}
            other => return Err(format!("it has the option -{other}, which is not known here")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
