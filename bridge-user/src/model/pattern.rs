//! Names of networks: what the default one is called, and those that stand for several, `all` and globs such as
//! `web-*`.
//!
//! Invariant: pure; which networks there are is asked elsewhere.

pub use glob::Pattern;

/// Every network, where one is named.
pub const ALL: &str = "all";
/// What the default network is called by Docker, and by Podman.
pub const DEFAULT_NETWORKS: [&str; 2] = ["bridge", "podman"];

/// Whether the name of a network may stand for several.
pub fn is_pattern(name: &str) -> bool {
    name == ALL || name.contains(['*', '?', '['])
}

/// What the names that it stands for look like.
///
/// # Errors
/// Says what is wrong with it.
pub fn pattern(name: &str) -> Result<Pattern, &'static str> {
    Pattern::new(if name == ALL { "*" } else { name }).map_err(|error| error.msg)
}

/// Whether `wide` stands for everything that `narrow` stands for, as far as names tell.
pub fn covers(wide: &str, narrow: &str) -> bool {
    let all_or_named =
        |pattern: Pattern| pattern.as_str() == "*" || (!is_pattern(narrow) && pattern.matches(narrow));
    wide == narrow || (is_pattern(wide) && pattern(wide).is_ok_and(all_or_named))
}

/// Whether both can mean the same network.
pub fn meet(one: &str, other: &str) -> bool {
    covers(one, other) || covers(other, one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_globs_and_all() {
        for name in ["all", "web-*", "app_?", "[ab]"] {
            assert!(is_pattern(name), "{name}");
        }
        assert!(!is_pattern("allnet") && !is_pattern("app_default"));
        assert!(pattern("[a").is_err() && pattern("***").is_err());
        assert!(pattern("all").unwrap().matches("anything"));
    }

    #[test]
    fn names_meet_where_they_can_mean_one_network() {
        for (one, other) in
            [("web", "web"), ("web-1", "web-*"), ("all", "web"), ("all", "web-*"), ("a*", "a*"), ("*", "x?")]
        {
            assert!(meet(one, other) && meet(other, one), "{one} {other}");
        }
        for (one, other) in [("web", "app"), ("web-*", "app"), ("web-*", "app-*"), ("all-x", "web")] {
            assert!(!meet(one, other) && !meet(other, one), "{one} {other}");
        }
        assert!(covers("all", "a*") && covers("a*", "ab") && !covers("a*", "a?") && !covers("ab", "a*"));
    }
}
