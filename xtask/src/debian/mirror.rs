//! Which Debian mirror to download from: the one in apt's configuration, or the one in `BRIDGE_DEBIAN_MIRROR`.

use std::{env, fs, path::Path};

use anyhow::{Result, bail};

/// Names the mirror: its URL, and after a space that of the security archive where it is not `<URL>-security`.
const VARIABLE: &str = "BRIDGE_DEBIAN_MIRROR";

/// A Debian mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    main: String,
    security: String,
}

impl Mirror {
    /// The mirror this machine uses.
    pub(crate) fn find() -> Result<Self> {
        if let Ok(value) = env::var(VARIABLE) {
            let mut urls = value.split_whitespace();
            let Some(main) = urls.next() else { bail!("failed to read {VARIABLE}: it is empty") };
            return Ok(Self::new(main, urls.next()));
        }
        let mut text = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
        let mut files: Vec<_> = fs::read_dir("/etc/apt/sources.list.d")
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect();
        files.sort();
        for file in files.iter().filter(|file| is_source(file)) {
            text.push('\n');
            text.push_str(&fs::read_to_string(file).unwrap_or_default());
        }
        let Some(mirror) = Self::from_sources(&text) else {
            bail!(
                "failed to find a Debian mirror: apt's configuration names none: set {VARIABLE} to the URL of one \
                 (the directory that holds dists/ and pool/)"
            );
        };
        Ok(mirror)
    }

    /// The archive's URL for a suite.
    pub(crate) fn archive(&self, suite: &str) -> &str {
        if suite.ends_with("-security") { &self.security } else { &self.main }
    }

    fn new(main: &str, security: Option<&str>) -> Self {
        let main = main.trim_end_matches('/').to_owned();
        let security =
            security.map_or_else(|| format!("{main}-security"), |url| url.trim_end_matches('/').to_owned());
        Self { main, security }
    }

    /// Looks for Debian's archives in source lists of either format.
    fn from_sources(text: &str) -> Option<Self> {
        let urls: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).flat_map(urls_in).collect();
        let ending = |end: &str| urls.iter().copied().find(|url| url.trim_end_matches('/').ends_with(end));
        Some(Self::new(ending("/debian")?, ending("/debian-security")))
    }
}

fn is_source(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "list" || extension == "sources")
}

/// The URLs of a `deb …` or `URIs: …` line.
fn urls_in(line: &str) -> impl Iterator<Item = &str> {
    let source = line.starts_with("deb ") || line.starts_with("URIs:");
    line.split_whitespace().filter(move |word| source && word.contains("://"))
}

#[cfg(test)]
mod tests {
    use super::Mirror;

    #[test]
    fn reads_both_formats() {
        let one_line = "# deb http://old.test/debian sid main\n\
                        deb [arch=amd64] https://tools.test/apt stable main\n\
                        deb [signed-by=/k.gpg] http://mirror.test/debian/ bookworm main\n";
        let found = Mirror::from_sources(one_line);
        assert_eq!(found, Some(Mirror::new("http://mirror.test/debian", None)));
        let deb822 = "Types: deb\nURIs: http://a.test/debian\nSuites: bookworm\n\n\
                      Types: deb\nURIs: http://b.test/debian-security\nSuites: bookworm-security\n";
        let found = Mirror::from_sources(deb822);
        assert_eq!(found, Some(Mirror::new("http://a.test/debian", Some("http://b.test/debian-security"))));
        assert_eq!(Mirror::from_sources("deb http://ubuntu.test/ubuntu noble main"), None);
    }

    #[test]
    fn picks_the_archive_by_suite() {
        let mirror = Mirror::new("http://mirror.test/debian/", None);
        assert_eq!(mirror.archive("bookworm-security"), "http://mirror.test/debian-security");
        assert_eq!(mirror.archive("trixie-backports"), "http://mirror.test/debian");
    }
}
