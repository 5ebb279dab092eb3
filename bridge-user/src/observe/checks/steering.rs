//! Findings about what steers a network namespace.
//!
//! Invariant: the subject is the network namespace, `net:[INODE]`.

use std::{collections::BTreeSet, path::Path};

use crate::{
    kernel::instance::hidden::{Generation, Hidden},
    model::{codes, finding::Finding},
    net::namespace::Namespace,
    plan,
};

/// What was found beside the pins in `dir`.
pub fn beside_pins(hidden: &Hidden, namespace: &Namespace, dir: &Path) -> Vec<Finding> {
    match hidden {
        Hidden::Nothing => Vec::new(),
        Hidden::Unknown(programs) => vec![unknown(programs, namespace)],
        Hidden::Found(all) => all.iter().map(|generation| instance(generation, namespace, dir)).collect(),
    }
}

fn instance(generation: &Generation, namespace: &Namespace, dir: &Path) -> Finding {
    codes::HIDDEN_INSTANCE.finding(
        format!("{namespace:?}"),
        format!(
            "something of bridge-user steers network namespace {}, and the pins in {} do not show it: {generation}; \
             another bpffs is mounted on top of its pins, or it was attached in another mount namespace",
            namespace.inode(),
            dir.display()
        ),
        "use the mount namespace it was attached in, or end it with `bridge-user detach --all`, which finds it by id",
    )
}

fn unknown(programs: &BTreeSet<u32>, namespace: &Namespace) -> Finding {
    let inode = namespace.inode();
    let cause = match programs.is_empty() {
        true => format!("what else steers network namespace {inode} cannot be told without CAP_NET_ADMIN"),
        false => format!(
            "programs {} steer network namespace {inode}, too, and without CAP_SYS_ADMIN nobody can tell whether they \
             are bridge-user's",
            plan::list(programs)
        ),
    };
    codes::UNKNOWN_STEERING.finding(format!("{namespace:?}"), cause, "run it as root")
}
