//! Lists that would otherwise be written down in several places: the maps of an object, the fields of a set of
//! counters.
//!
//! Invariant: one entry here is all there is to say. Names, layouts, sums and the tables of `docs/design/maps.md` are
//! made of it; the object itself is compared with it by a host test of `bridge-user`.

/// What there is to know about one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRow {
    /// Its name in the object, and that of its pin.
    pub name: &'static str,
    /// The kernel's kind of map.
    pub kind: &'static str,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value, for one CPU.
    pub value_size: usize,
    /// What a key is.
    pub key: &'static str,
    /// What a value is.
    pub value: &'static str,
    /// Who writes it.
    pub writer: &'static str,
    /// Who reads it.
    pub reader: &'static str,
    /// From when to when an entry is there.
    pub lifetime: &'static str,
}

/// The maps of one object: a constant for each name, `ALL_MAPS` (the names), and `MAPS` (a [`MapRow`] for each).
///
/// `NAME: "kind", KeyType => ValueType { … }`; the types yield the sizes, `()` that of a map without.
macro_rules! maps {
    ($(
        $(#[$doc:meta])*
        $name:ident: $kind:literal, $key_type:ty => $value_type:ty {
            key: $key:literal,
            value: $value:literal,
            writer: $writer:literal,
            reader: $reader:literal,
            lifetime: $lifetime:literal,
        }
    )+) => {
        $( $(#[$doc])* pub const $name: &str = stringify!($name); )+

        /// The name of every map, in the order it is pinned.
        pub const ALL_MAPS: [&str; MAPS.len()] = [$($name),+];

        /// Every map, in the same order.
        pub const MAPS: [$crate::registry::MapRow; [$(stringify!($name)),+].len()] = [$(
            $crate::registry::MapRow {
                name: $name,
                kind: $kind,
                key_size: size_of::<$key_type>(),
                value_size: size_of::<$value_type>(),
                key: $key,
                value: $value,
                writer: $writer,
                reader: $reader,
                lifetime: $lifetime,
            },
        )+];
    };
}
pub(crate) use maps;

/// A struct of counters, their sum over CPUs or workers ([`core::iter::Sum`]), and their names (`named`). Fields after
/// `latest` are times: a sum has the latest. Fields after `and` are neither: a sum has their default.
#[macro_export]
macro_rules! counters {
    (
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $( $(#[$doc:meta])* pub $counter:ident: u64, )+
        }
        $( latest { $( $(#[$time_doc:meta])* pub $time:ident: u64, )+ } )?
        $( and { $( $(#[$other_doc:meta])* pub $other:ident: $other_type:ty, )+ } )?
    ) => {
        $(#[$attribute])*
        pub struct $name {
            $( $(#[$doc])* pub $counter: u64, )+
            $($( $(#[$time_doc])* pub $time: u64, )+)?
            $($( $(#[$other_doc])* pub $other: $other_type, )+)?
        }

        impl $name {
            /// Name and value of each counter, in the order they are declared.
            pub const fn named(&self) -> [(&'static str, u64); [$(stringify!($counter)),+].len()] {
                [$( (stringify!($counter), self.$counter) ),+]
            }
        }

        impl core::iter::Sum for $name {
            fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
                let mut sum = Self::default();
                for one in all {
                    $( sum.$counter += one.$counter; )+
                    $($( sum.$time = sum.$time.max(one.$time); )+)?
                }
                sum
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use std::{format, string::String};

    use super::*;
    use crate::{document, maps::Stats, names};

    fn table(maps: &[MapRow]) -> String {
        let head = "| map | type | key | value | writer | reader | lifetime of an entry |\n\
                    | --- | --- | --- | --- | --- | --- | --- |\n";
        let row = |map: &MapRow| {
            let MapRow { name, kind, key, value, writer, reader, lifetime, .. } = map;
            format!("| `{name}` | {kind} | {key} | {value} | {writer} | {reader} | {lifetime} |\n")
        };
        [head.into()].into_iter().chain(maps.iter().map(row)).collect()
    }

    #[test]
    fn document_has_the_tables_of_maps() {
        let tables = [("maps", table(&names::MAPS)), ("relay maps", table(&names::relay::MAPS))];
        document::require("docs/design/maps.md", &tables, "-p bridge-common document_has").unwrap();
    }

    #[test]
    fn names_survive_the_kernel() {
        // BPF_OBJ_NAME_LEN without its NUL.
        for name in names::ALL_MAPS.iter().chain(&names::relay::ALL_MAPS).chain(&names::ALL_PROGRAMS) {
            assert!(name.len() <= 15, "{name} has {} bytes, the kernel keeps 15", name.len());
        }
    }

    #[test]
    fn sums_are_over_counters_and_have_the_latest_time() {
        let one = Stats { arrived: 1, steered: 2, arrived_ns: 7, last_event_ns: 3, ..Stats::default() };
        let other = Stats { arrived_ns: 5, ..one };
        let sum: Stats = [one, other].into_iter().sum();
        assert_eq!(sum, Stats { arrived: 2, steered: 4, arrived_ns: 7, ..Stats::default() });
        assert_eq!(sum.named()[..2], [("arrived", 2), ("steered", 4)]);
    }
}
