//! Netfilter of a network namespace: what this project puts there, and which NAT rules are there.

pub mod nat;
pub mod nft;
mod program;
