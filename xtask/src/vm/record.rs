//! What runs write down in the repository: TOML files below `tests/`, with a header that says who writes them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Serialize, de::DeserializeOwned};

/// Reads a file; without one, nothing was recorded.
pub(super) fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    if !path.exists() {
        return Ok(T::default());
    }
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("failed to parse {}", path.display()))
}

/// Writes a file.
pub(super) fn write<T: Serialize>(path: &Path, header: &str, content: &T) -> Result<()> {
    let body =
        toml::to_string(content).with_context(|| format!("failed to write {} as TOML", path.display()))?;
    fs::write(path, format!("{header}\n{body}"))
        .with_context(|| format!("failed to write {}", path.display()))
}
