//! Names of networks that stand for several: `all`, and globs such as `web-*`.
//!
//! Invariant: pure; which networks there are is asked elsewhere.

pub use glob::Pattern;

/// Every network, where one is named.
const ALL: &str = "all";

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

/// Whether both can mean the same network: they are the same, one stands for the other, or one for all.
pub fn meet(one: &str, other: &str) -> bool {
    let covers = |wide: &str, narrow: &str| {
        is_pattern(wide)
            && pattern(wide).is_ok_and(|pattern| pattern.as_str() == "*" || pattern.matches(narrow))
    };
    one == other || covers(one, other) || covers(other, one)
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
    }
}
