//! Unit files of systemd, as far as forwards are concerned. Pure: texts in, commands out.
//!
//! Invariants: drop-ins count after the unit, in the order given, and an empty assignment empties a list, as in
//! systemd; a specifier that is not known here is refused with its letter.

use super::words::{Variables, assignments};

/// The lists of a unit that matter here, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// `ExecStart=`, with specifiers.
    pub starts: Vec<String>,
    /// `Environment=`.
    pub environment: Vec<String>,
    /// `EnvironmentFile=`; a `-` in front allows it to be missing.
    pub environment_files: Vec<String>,
    /// `ListenStream=` of a socket.
    pub listens: Vec<String>,
    /// `Service=` of a socket.
    pub service: Option<String>,
    /// `Sockets=` of a service.
    pub sockets: Vec<String>,
    /// `BindIPv6Only=` of a socket is `ipv6-only`.
    pub ipv6_only: bool,
    /// `BindToDevice=` of a socket.
    pub device: Option<String>,
    /// `Accept=` of a socket: a process for each connection.
    pub accepts: bool,
}

impl Unit {
    /// The unit's file first, then its drop-ins.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut unit = Self::default();
        for text in texts {
            let mut section = String::new();
            for line in logical_lines(text) {
                if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                    section = name.to_owned();
                } else if let Some((key, value)) = line.split_once('=') {
                    unit.set(&section, key.trim(), value.trim());
                }
            }
        }
        unit
    }

    fn set(&mut self, section: &str, key: &str, value: &str) {
        let is_true = ["1", "yes", "true", "on"].contains(&value);
        let list = match (section, key) {
            ("Service", "ExecStart") => &mut self.starts,
            ("Service", "Environment") => &mut self.environment,
            ("Service", "EnvironmentFile") => &mut self.environment_files,
            ("Service", "Sockets") => &mut self.sockets,
            ("Socket", "ListenStream") => &mut self.listens,
            ("Socket", "Service") => return self.service = Some(value.to_owned()),
            ("Socket", "BindIPv6Only") => return self.ipv6_only = value == "ipv6-only",
            ("Socket", "BindToDevice") => {
                return self.device = Some(value.to_owned()).filter(|name| !name.is_empty());
            }
            ("Socket", "Accept") => return self.accepts = is_true,
            _ => return,
        };
        if value.is_empty() {
            list.clear();
        } else {
            list.push(value.to_owned());
        }
    }

    /// What `Environment=` and the files, whose texts are given, set. A file overrides.
    ///
    /// # Errors
    /// When a quote is not closed.
    pub fn variables<'a>(
        &self,
        name: &Name,
        files: impl IntoIterator<Item = &'a str>,
    ) -> Result<Variables, String> {
        let mut variables = Variables::new();
        for line in &self.environment {
            variables.extend(assignments(&name.expand(line)?)?);
        }
        for text in files {
            variables.extend(super::words::environment_file(text));
        }
        Ok(variables)
    }
}

/// Lines without comments; a backslash at the end goes on with the next, and comments in between do not end that.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = String::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with(['#', ';']) || (trimmed.is_empty() && open.is_empty()) {
            continue;
        }
        match trimmed.strip_suffix('\\') {
            Some(start) => {
                open.push_str(start);
                open.push(' ');
            }
            None => {
                open.push_str(trimmed);
                lines.push(std::mem::take(&mut open));
            }
        }
    }
    lines.extend(Some(open).filter(|line| !line.trim().is_empty()));
    lines
}

/// A unit's name: `prefix@instance.service`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(pub String);

impl Name {
    /// `prefix@`, of a template that has no instance.
    pub fn is_template(&self) -> bool {
        self.instance() == Some("")
    }

    /// The template that this is an instance of.
    pub fn template(&self) -> Option<Self> {
        let (prefix, rest) = self.0.split_once('@')?;
        let (instance, kind) = rest.rsplit_once('.')?;
        (!instance.is_empty()).then(|| Self(format!("{prefix}@.{kind}")))
    }

    /// What stands behind `@`.
    pub fn instance(&self) -> Option<&str> {
        let (_, rest) = self.0.split_once('@')?;
        rest.rsplit_once('.').map(|(instance, _)| instance)
    }

    /// The unit of another kind with the same name.
    pub fn with_kind(&self, kind: &str) -> Self {
        Self(format!("{}.{kind}", self.0.rsplit_once('.').map_or(self.0.as_str(), |(name, _)| name)))
    }

    fn prefix(&self) -> &str {
        let name = self.0.rsplit_once('.').map_or(self.0.as_str(), |(name, _)| name);
        name.split_once('@').map_or(name, |(prefix, _)| prefix)
    }

    /// A value with its specifiers replaced.
    ///
    /// # Errors
    /// Names one that is not known here.
    pub fn expand(&self, value: &str) -> Result<String, String> {
        let mut text = String::new();
        let mut chars = value.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            match chars.next() {
                Some('%') => text.push('%'),
                Some('i') => text.push_str(self.instance().unwrap_or_default()),
                Some('I') => text.push_str(&unescaped(self.instance().unwrap_or_default())),
                Some('n') => text.push_str(&self.0),
                Some('N') => text.push_str(self.0.rsplit_once('.').map_or(self.0.as_str(), |(name, _)| name)),
                Some('p') => text.push_str(self.prefix()),
                Some('P') => text.push_str(&unescaped(self.prefix())),
                Some('j') => text.push_str(self.prefix().rsplit('-').next().unwrap_or_default()),
                Some('t') => text.push_str("/run"),
                other => {
                    let letter = other.map(String::from).unwrap_or_default();
                    return Err(format!("what %{letter} stands for in `{value}` only systemd can tell"));
                }
            }
        }
        Ok(text)
    }
}

/// As systemd-escape(1) with `--unescape`: `-` is a slash, `\xNN` a byte.
fn unescaped(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let code = rest.strip_prefix("\\x").and_then(|after| after.get(..2));
        let byte = code.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (byte, c) {
            (Some(byte), _) => {
                plain.push(char::from(byte));
                rest = &rest[4..];
                continue;
            }
            (None, '-') => plain.push('/'),
            (None, c) => plain.push(c),
        }
        rest = &rest[c.len_utf8()..];
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_with_their_drop_ins() {
        let unit = "[Unit]\nDescription=x\n[Service]\n# a comment\nEnvironment=PORT=1 \"A=b c\"\n\
                    ExecStart=/usr/bin/socat \\\n  TCP-LISTEN:1,fork \\\n# not this\n  TCP:127.0.0.1:1\n[Install]\n";
        let parsed = Unit::parse([unit]);
        assert_eq!(parsed.starts.len(), 1);
        let words: Vec<_> = parsed.starts[0].split_whitespace().collect();
        assert_eq!(words, ["/usr/bin/socat", "TCP-LISTEN:1,fork", "TCP:127.0.0.1:1"]);
        let overridden = Unit::parse([unit, "[Service]\nExecStart=\nExecStart=socat a b\n"]);
        assert_eq!(overridden.starts, ["socat a b"]);
        let added = Unit::parse([unit, "[Service]\nExecStart=socat a b\n"]);
        assert_eq!(added.starts.len(), 2);
        assert_eq!(parsed.variables(&Name("a.service".into()), ["PORT=2\n"]).unwrap()["PORT"], "2");
    }

    #[test]
    fn sockets_are_read() {
        let text = "[Socket]\nListenStream=172.17.0.1:5432\nListenStream=80\nService=x.service\n\
                    BindIPv6Only=ipv6-only\nAccept=no\nBindToDevice=docker0\n";
        let unit = Unit::parse([text]);
        assert_eq!(unit.listens, ["172.17.0.1:5432", "80"]);
        assert_eq!((unit.service.as_deref(), unit.device.as_deref()), (Some("x.service"), Some("docker0")));
        assert!(unit.ipv6_only && !unit.accepts);
    }

    #[test]
    fn names_have_instances_and_specifiers() {
        let name = Name("forward@172.17.0.1-5432.service".to_owned());
        assert_eq!(name.template(), Some(Name("forward@.service".to_owned())));
        assert_eq!(name.expand("X:%i,%p,%%").unwrap(), "X:172.17.0.1-5432,forward,%");
        assert_eq!(Name("a@run-x\\x2dy.service".into()).expand("/%I").unwrap(), "/run/x-y");
        assert!(Name("a@.service".into()).is_template() && !name.is_template());
        assert_eq!(Name("a.service".into()).template(), None);
        assert_eq!(name.with_kind("socket").0, "forward@172.17.0.1-5432.socket");
        assert!(name.expand("%h/x").unwrap_err().contains("%h"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[ -~\\n]{0,200}", name in "[ -~]{0,30}") {
            let unit = Unit::parse([text.as_str()]);
            let name = Name(name);
            for line in &unit.starts {
                let _ = name.expand(line);
            }
            let (_, _) = (name.template(), name.with_kind("socket"));
            let _ = unescaped(&text);
        }
    }
}
