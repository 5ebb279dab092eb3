//! What this project puts into netfilter, per network namespace.

pub mod nft;
