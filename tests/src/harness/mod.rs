//! The harness: namespaces, topology, services and the binary under test.
//!
//! Invariant: everything the harness creates belongs to a guard whose `Drop` removes it, also when
//! a trial panics, and [`leftovers`] checks that afterwards.

pub(crate) mod api_server;
pub(crate) mod cli;
pub(crate) mod client;
pub(crate) mod containers;
pub(crate) mod counts;
pub(crate) mod daemon;
pub(crate) mod docker;
pub(crate) mod endings;
pub(crate) mod facts;
pub(crate) mod fake_docker;
pub(crate) mod foreground;
pub(crate) mod go_server;
pub(crate) mod group;
pub(crate) mod image;
pub(crate) mod impostor;
pub(crate) mod kernel;
pub(crate) mod kernel_ids;
pub(crate) mod leftovers;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod mariadb;
pub(crate) mod memory;
pub(crate) mod mounts;
pub(crate) mod netns;
pub(crate) mod noise;
pub(crate) mod odd_engine;
pub(crate) mod peers;
pub(crate) mod pinned;
pub(crate) mod planned;
pub(crate) mod podman;
pub(crate) mod postgres;
pub(crate) mod proc;
pub(crate) mod raw;
pub(crate) mod recorder;
pub(crate) mod redis;
pub(crate) mod relay;
pub(crate) mod release;
pub(crate) mod rig;
pub(crate) mod service;
pub(crate) mod stepper;
pub(crate) mod sys;
pub(crate) mod topology;
pub(crate) mod transcript;
pub(crate) mod wait;
