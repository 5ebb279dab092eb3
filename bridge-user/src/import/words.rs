//! Command lines as systemd and shells split them into words. Pure.
//!
//! Invariant: what cannot be told without running it, such as `$(…)`, is refused with its text, and never guessed.

use std::collections::BTreeMap;

/// What variables are set to.
pub type Variables = BTreeMap<String, String>;

/// The commands of an `ExecStart=`: words as systemd splits them, `;` between commands.
///
/// # Errors
/// Says what of it cannot be told.
pub fn systemd(line: &str, variables: &Variables) -> Result<Vec<Vec<String>>, String> {
    let line = line.trim_start();
    let flags: String = line.chars().take_while(|c| "@-:+!".contains(*c)).collect();
    let mut words = Vec::new();
    for word in split(&line[flags.len()..])? {
        if flags.contains(':') {
            words.push(word.text);
        } else {
            words.extend(expanded(&word, variables));
        }
    }
    let commands = words.split(|word| word == ";").filter(|command| !command.is_empty());
    let mut commands: Vec<Vec<String>> = commands.map(<[String]>::to_vec).collect();
    if flags.contains('@') {
        // The second word is only what the program is called.
        commands.iter_mut().filter(|command| command.len() > 1).for_each(|command| drop(command.remove(1)));
    }
    Ok(commands)
}

/// The assignments of an `Environment=`.
///
/// # Errors
/// When a quote is not closed.
pub fn assignments(line: &str) -> Result<Variables, String> {
    let words = split(line)?;
    Ok(words.iter().filter_map(|word| word.text.split_once('=')).map(pair).collect())
}

/// The assignments of a file that `EnvironmentFile=` names: one a line, in quotes or not.
pub fn environment_file(text: &str) -> Variables {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let unquoted = |value: &str| {
        let value = value.trim();
        let inner = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        inner.unwrap_or(value).to_owned()
    };
    let assigned = lines.filter_map(|line| line.trim_start_matches("export ").split_once('='));
    assigned.map(|(name, value)| (name.trim().to_owned(), unquoted(value))).collect()
}

fn pair((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A word, and whether a quote was in it.
struct Word {
    text: String,
    quoted: bool,
}

/// Splits at blanks, as systemd does: quotes, and backslashes as in C.
fn split(line: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut open: Option<Word> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_ascii_whitespace() {
            words.extend(open.take());
            continue;
        }
        let word = open.get_or_insert_with(|| Word { text: String::new(), quoted: false });
        match (c, quote) {
            ('"' | '\'', None) => (quote, word.quoted) = (Some(c), true),
            (c, Some(q)) if c == q => quote = None,
            ('\\', _) => word.text.push(escape(&mut chars)),
            (c, _) => word.text.push(c),
        }
    }
    if quote.is_some() {
        return Err(format!("a quote is not closed in `{line}`"));
    }
    words.extend(open);
    Ok(words)
}

fn escape(chars: &mut std::str::Chars<'_>) -> char {
    match chars.next() {
        Some('n') => '\n',
        Some('t') => '\t',
        Some('s') => ' ',
        Some('x') => {
            let digits: String = chars.by_ref().take(2).collect();
            u8::from_str_radix(&digits, 16).map_or('?', char::from)
        }
        Some(other) => other,
        None => '\\',
    }
}

/// `${NAME}` anywhere in a word, and `$NAME` that is the whole word, which is split at blanks; `$$` is a dollar.
fn expanded(word: &Word, variables: &Variables) -> Vec<String> {
    let value = |name: &str| variables.get(name).cloned().unwrap_or_default();
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if let Some(name) = word.text.strip_prefix('$').filter(|name| is_name(name) && !word.quoted) {
        return value(name).split_whitespace().map(str::to_owned).collect();
    }
    let mut text = String::new();
    let mut rest = word.text.as_str();
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        let braced = after.strip_prefix('{').and_then(|after| after.split_once('}'));
        rest = match (after.strip_prefix('$'), braced) {
            (Some(after), _) => {
                text.push('$');
                after
            }
            (None, Some((name, after))) if is_name(name) => {
                text.push_str(&value(name));
                after
            }
            _ => {
                text.push('$');
                after
            }
        };
    }
    text.push_str(rest);
    vec![text]
}

/// The commands of a script that a shell gets with `-c`, each as its words.
///
/// # Errors
/// Says what of it cannot be told.
pub fn shell(script: &str, variables: &Variables) -> Result<Vec<Vec<String>>, String> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = script.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('`', None | Some('"')) => return Err("it runs a command inside a command (`…`)".to_owned()),
            ('\'', None) | ('"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(q)) if c == q => quote = None,
            ('$', None | Some('"')) => {
                word.get_or_insert_default().push_str(&variable(&mut chars, variables)?)
            }
            ('\\', None) => match chars.next() {
                Some('\n') | None => {}
                Some(next) => word.get_or_insert_default().push(next),
            },
            ('#', None) if word.is_none() => while chars.next_if(|c| *c != '\n').is_some() {},
            (';' | '&' | '|' | '\n' | '{' | '}', None) if word.is_none() || !"{}".contains(c) => {
                end_word(&mut commands, &mut word);
                commands.push(Vec::new());
            }
            ('>' | '<', None) => {
                // A redirection, with the number before it and the name behind it, is no argument.
                word.take_if(|word| word.chars().all(|c| c.is_ascii_digit()));
                end_word(&mut commands, &mut word);
                while chars.next_if(|c| " \t>&".contains(*c)).is_some() {}
                while chars.next_if(|c| !" \t\n;&|".contains(*c)).is_some() {}
            }
            (c, None) if c.is_ascii_whitespace() => end_word(&mut commands, &mut word),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    end_word(&mut commands, &mut word);
    if quote.is_some() {
        return Err(format!("a quote is not closed in `{script}`"));
    }
    Ok(commands.into_iter().filter(|command| !command.is_empty()).collect())
}

fn end_word(commands: &mut [Vec<String>], word: &mut Option<String>) {
    if let (Some(command), Some(word)) = (commands.last_mut(), word.take()) {
        command.push(word);
    }
}

fn variable(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    variables: &Variables,
) -> Result<String, String> {
    let is_braced = chars.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    if (is_braced && chars.next() != Some('}')) || name.is_empty() {
        return Err(format!("what `${name}…` stands for only a shell can tell"));
    }
    variables.get(&name).cloned().ok_or_else(|| format!("variable {name} is set nowhere in the unit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        [("PORT", "11434"), ("OPTS", "-d -d"), ("GATEWAY", "172.17.0.1")].into_iter().map(pair).collect()
    }

    #[test]
    fn systemd_lines_are_split_and_expanded() {
        for (line, expected) in [
            ("/usr/bin/socat a b", vec![vec!["/usr/bin/socat", "a", "b"]]),
            (
                "-/usr/bin/socat $OPTS X:${PORT},bind=${GATEWAY}",
                vec![vec!["/usr/bin/socat", "-d", "-d", "X:11434,bind=172.17.0.1"]],
            ),
            (r#"socat "a b" 'c $$ d' e\x20f"#, vec![vec!["socat", "a b", "c $ d", "e f"]]),
            ("@/usr/bin/socat forward a b", vec![vec!["/usr/bin/socat", "a", "b"]]),
            (":socat ${PORT}", vec![vec!["socat", "${PORT}"]]),
            ("a 1 ; b 2", vec![vec!["a", "1"], vec!["b", "2"]]),
            ("socat $NOTHING x$PORT", vec![vec!["socat", "x$PORT"]]),
        ] {
            assert_eq!(systemd(line, &variables()).unwrap(), expected, "{line}");
        }
        assert!(systemd("socat \"a", &variables()).is_err());
    }

    #[test]
    fn environments_are_read() {
        let found = assignments(r#"A=1 "B=two words" C='3'"#).unwrap();
        assert_eq!((found["A"].as_str(), found["B"].as_str(), found["C"].as_str()), ("1", "two words", "3"));
        let found = environment_file("# comment\nPORT = 5432\nexport G='172.17.0.1'\n; x\nN=\"a b\"\nodd\n");
        assert_eq!(found.len(), 3);
        assert_eq!(
            (found["PORT"].as_str(), found["G"].as_str(), found["N"].as_str()),
            ("5432", "172.17.0.1", "a b")
        );
    }

    #[test]
    fn scripts_are_taken_apart() {
        for (script, expected) in [
            ("exec socat a b", vec![vec!["exec", "socat", "a", "b"]]),
            (
                "socat a 'b c' & socat d e & wait",
                vec![vec!["socat", "a", "b c"], vec!["socat", "d", "e"], vec!["wait"]],
            ),
            (
                "sleep 1 && socat X:$PORT \"Y:${PORT}\" >/dev/null 2>&1\nwait # both",
                vec![vec!["sleep", "1"], vec!["socat", "X:11434", "Y:11434"], vec!["wait"]],
            ),
            (
                "while true; do socat a b; done",
                vec![vec!["while", "true"], vec!["do", "socat", "a", "b"], vec!["done"]],
            ),
            ("socat a \\\n  b", vec![vec!["socat", "a", "b"]]),
        ] {
            assert_eq!(shell(script, &variables()).unwrap(), expected, "{script}");
        }
        assert!(shell("socat X:$(cat port) b", &variables()).unwrap_err().contains("only a shell"));
        assert!(shell("socat X:`cat port` b", &variables()).is_err());
        assert!(shell("socat X:$NOWHERE b", &variables()).unwrap_err().contains("NOWHERE"));
    }
}
