//! A stand-in for an engine that answers oddly: with any text, or without an end.
//!
//! Invariant: an answer without an end lasts as long as somebody reads it.

use std::io::Write;
use std::os::unix::net::UnixStream;

use anyhow::Result;

use super::api_server::{ApiServer, HEAD, say, version};

/// What it answers to everything but the question for its version.
pub(crate) enum Answer {
    Text(String),
    /// A list that begins and never ends.
    Endless,
}

/// Listens, and gives this answer.
pub(crate) fn start(answer: Answer) -> Result<ApiServer> {
    ApiServer::start(move |path, stream| match &answer {
        _ if path.ends_with("/version") => say(stream, &version().to_string()),
        Answer::Text(text) => say(stream, text),
        Answer::Endless => never_end(stream),
    })
}

fn never_end(mut stream: &UnixStream) -> std::io::Result<()> {
    let more = [b' '; 64 * 1024];
    write!(stream, "{HEAD}\r\n[")?;
    loop {
        stream.write_all(&more)?;
    }
}
