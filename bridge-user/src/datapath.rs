//! Which datapath serves an attachment, and why. Pure: facts in, decision out.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use crate::spec::Target;

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Requested {
    /// The best one that works here.
    #[default]
    Auto,
    /// In-kernel steering onto the loopback listener.
    Steer,
    /// Relay through a sockmap.
    Sockmap,
    /// Relay through splice(2).
    Splice,
    /// Steering plus sk_msg between the end sockets.
    Express,
}

/// A datapath this version has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Datapath {
    /// `sk_lookup` puts the connection onto the loopback listener.
    Steer,
}

impl fmt::Display for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steer => f.write_str("steer"),
        }
    }
}

/// Why a datapath was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A probe connection was really steered on this kernel.
    ProbePassed,
    /// The user asked for it.
    Requested,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ProbePassed => "probe passed",
            Self::Requested => "requested with --datapath steer",
        })
    }
}

/// Chooses the datapath for one target.
///
/// # Errors
/// When what was asked for, or what the target needs, is not in this version; the text says what to do instead.
pub fn choose(requested: Requested, target: &Target) -> Result<(Datapath, Reason), String> {
    if let Target::Unix(path) = target {
        return Err(format!(
            "target unix:{} needs a relay, which this version does not have: let the service listen on 127.0.0.1, \
             then attach its port",
            path.display()
        ));
    }
    match requested {
        Requested::Auto => Ok((Datapath::Steer, Reason::ProbePassed)),
        Requested::Steer => Ok((Datapath::Steer, Reason::Requested)),
        Requested::Sockmap | Requested::Splice | Requested::Express => {
            let name = requested.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
            Err(format!(
                "--datapath {name} is not in this version, expected auto or steer: use --datapath auto"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp() -> Target {
        Target::Tcp("127.0.0.1:6379".parse().unwrap())
    }

    #[test]
    fn auto_and_steer_steer() {
        assert_eq!(choose(Requested::Auto, &tcp()), Ok((Datapath::Steer, Reason::ProbePassed)));
        assert_eq!(choose(Requested::Steer, &tcp()), Ok((Datapath::Steer, Reason::Requested)));
    }

    #[test]
    fn what_is_missing_is_refused_by_name() {
        for (requested, name) in
            [(Requested::Sockmap, "sockmap"), (Requested::Splice, "splice"), (Requested::Express, "express")]
        {
            let error = choose(requested, &tcp()).unwrap_err();
            assert!(error.contains(name) && error.contains("use --datapath auto"), "{error}");
        }
        let error = choose(Requested::Auto, &Target::Unix("/run/x.sock".into())).unwrap_err();
        assert!(error.contains("/run/x.sock") && error.contains("127.0.0.1"), "{error}");
    }
}
