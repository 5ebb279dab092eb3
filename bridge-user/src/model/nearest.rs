//! Which known word somebody meant who typed another.
//!
//! Invariants: pure; a word is near if it is at most two slips of the keys away, and those at most half of what was
//! typed. Case does not matter.

/// The longest text that is compared, in characters.
const LONGEST: usize = 64;
/// The most slips.
const MOST_SLIPS: usize = 2;

/// The word that is nearest to `typed`, if one is near.
pub fn nearest<'a>(typed: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed: String = typed.chars().take(LONGEST).collect::<String>().to_lowercase();
    let allowed = (typed.chars().count() / 2).min(MOST_SLIPS);
    let near = words.into_iter().map(|word| (strsim::osa_distance(&typed, word), word));
    near.filter(|(slips, _)| *slips <= allowed).min_by_key(|(slips, _)| *slips).map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_forgiven_and_other_words_are_not() {
        let words = ["networks", "allow", "service"];
        for (typed, expected) in [
            ("netwroks", Some("networks")),
            ("Network", Some("networks")),
            ("alow", Some("allow")),
            ("services", Some("service")),
            ("s", None),
            ("", None),
            ("labels", None),
        ] {
            assert_eq!(nearest(typed, words), expected, "{typed}");
        }
        assert_eq!(nearest(&"x".repeat(100_000), words), None);
    }
}
