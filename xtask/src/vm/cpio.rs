//! Writes an initramfs: the "newc" cpio format, uncompressed, since under emulation unpacking costs more than reading.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;

/// An archive being written. Parent directories come into being by themselves.
pub(super) struct Archive {
    out: BufWriter<File>,
    path: PathBuf,
    written: BTreeSet<PathBuf>,
    inode: u32,
}

impl Archive {
    /// Starts an archive at `path`.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("failed to create {}", path.display()))?;
        Ok(Self { out: BufWriter::new(file), path: path.to_path_buf(), written: BTreeSet::new(), inode: 1 })
    }

    /// Whether something has this name already.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.written.contains(Path::new(name))
    }

    /// Adds a directory.
    pub(super) fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, DIRECTORY, &[])
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(name, SYMLINK, target.as_bytes())
    }

    /// Adds a file with the given content and permission bits.
    pub(super) fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> Result<()> {
        self.entry(name, REGULAR | permissions, content)
    }

    /// Adds a copy of a file on this machine.
    pub(super) fn copy(&mut self, name: &str, source: &Path) -> Result<()> {
        let failed = || format!("failed to read {} for the initramfs", source.display());
        let content = fs::read(source).with_context(failed)?;
        let permissions = fs::metadata(source).with_context(failed)?.permissions().mode() & 0o777;
        self.file(name, permissions, &content)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<()> {
        let failed = format!("failed to write {}", self.path.display());
        self.inode = 0;
        self.record("TRAILER!!!", 0, &[]).and_then(|()| self.out.flush()).context(failed)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        if !self.written.insert(PathBuf::from(name)) {
            return Ok(());
        }
        if let Some(parent) =
            Path::new(name).parent().and_then(Path::to_str).filter(|parent| !parent.is_empty())
        {
            self.directory(parent)?;
        }
        self.inode += 1;
        self.record(name, mode, content)
            .with_context(|| format!("failed to write {name} to {}", self.path.display()))
    }

    /// One header with its name and content, each padded to four bytes.
    fn record(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..length.next_multiple_of(4) - length])
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn parents_come_first_and_records_are_aligned() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("image");
        let mut archive = Archive::create(&path)?;
        archive.file("usr/bin/x", 0o755, b"hello")?;
        archive.file("usr/bin/x", 0o755, b"again")?;
        archive.finish()?;
        let bytes = std::fs::read(&path)?;
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let places = ["usr\0", "usr/bin\0", "usr/bin/x\0", "hello", "TRAILER!!!"].map(|part| text.find(part));
        assert!(places.is_sorted() && places[0].is_some(), "{places:?}");
        assert!(!text.contains("again"));
        Ok(())
    }
}
