//! What an instance says of itself. Pure data; map `META` holds it.

use serde::Serialize;

use super::event_level::EventLevel;

/// What map `META` says beside layout, build and namespace, which only its writer knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InstanceMeta {
    /// The level that its programs were loaded with.
    pub event_level: EventLevel,
    /// Steering was tried on this host before the first attach.
    pub probed: bool,
    /// The namespace that attached from outside, if one did.
    pub owner: Option<NamespaceId>,
}

/// What a network namespace is known by later, when nothing keeps it alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NamespaceId {
    /// A later namespace may get the same.
    pub inode: u64,
    /// No later namespace gets the same. Unknown below Linux 5.14.
    pub cookie: Option<u64>,
}

impl NamespaceId {
    /// Whether both are the same namespace. Where a cookie is unknown, the inode has to do.
    pub fn is(self, other: Self) -> bool {
        let by_cookie = self.cookie.zip(other.cookie).is_none_or(|(one, another)| one == another);
        self.inode == other.inode && by_cookie
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_got_an_inode_again_is_another() {
        let id = |inode, cookie| NamespaceId { inode, cookie };
        assert!(id(7, Some(1)).is(id(7, Some(1))));
        assert!(!id(7, Some(1)).is(id(7, Some(2))));
        assert!(!id(7, Some(1)).is(id(8, Some(1))));
        assert!(id(7, None).is(id(7, Some(1))) && id(7, Some(1)).is(id(7, None)));
    }
}
