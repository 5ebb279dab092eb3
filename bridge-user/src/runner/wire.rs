//! What a relay process and those who ask it say to each other: frames of a mark, a length and JSON.
//!
//! Invariants: a frame that is too long, cut or not of this version is an error before any of it is read as text;
//! nobody is waited for beyond the deadline that the caller sets, however slowly bytes come.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};

/// The first bytes of every frame: the protocol and its version.
const MARK: [u8; 8] = *b"bridge\0\x01";
/// The shortest time limit of a read: 0 would mean none.
const SHORTEST: Duration = Duration::from_millis(1);

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The other side closed, or broke off, before the first byte.
    #[error("it closed the connection")]
    Closed,
    /// It does not speak this protocol, or another version of it.
    #[error("it does not speak this version's protocol: is it another version?")]
    Foreign,
    /// More than it may say.
    #[error("it says {0} bytes, expected at most {1}")]
    TooLong(usize, usize),
    /// It took too long, or broke off in the middle.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// Writes one message.
///
/// # Errors
/// When the other side has gone, or takes nothing for as long as the stream's time limit is.
pub(super) fn write(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    stream.write_all(&[&MARK[..], &length.to_le_bytes(), &body].concat())
}

/// Reads one message of at most `longest` bytes; `deadline`: when to stop waiting, if ever.
///
/// # Errors
/// See [`WireError`].
pub(super) fn read<T: DeserializeOwned>(
    stream: &UnixStream,
    longest: usize,
    deadline: Option<Instant>,
) -> Result<T, WireError> {
    let mut head = [0; MARK.len() + size_of::<u32>()];
    fill(stream, &mut head, deadline)?;
    let (mark, length) = head.split_at(MARK.len());
    if mark != MARK {
        return Err(WireError::Foreign);
    }
    let length = u32::from_le_bytes(length.try_into().map_err(|_| WireError::Foreign)?) as usize;
    if length > longest {
        return Err(WireError::TooLong(length, longest));
    }
    let mut body = vec![0; length];
    match fill(stream, &mut body, deadline) {
        Err(WireError::Closed) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        filled => filled?,
    }
    serde_json::from_slice(&body).map_err(|_| WireError::Foreign)
}

fn fill(mut stream: &UnixStream, buffer: &mut [u8], deadline: Option<Instant>) -> Result<(), WireError> {
    let mut filled = 0;
    while filled < buffer.len() {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        stream.set_read_timeout(left.map(|left| left.max(SHORTEST)))?;
        match stream.read(&mut buffer[filled..]) {
            Ok(0) if filled == 0 => return Err(WireError::Closed),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && filled == 0 => {
                return Err(WireError::Closed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(10))
    }

    fn answer_to(bytes: &[u8]) -> Result<Vec<String>, WireError> {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(bytes).unwrap();
        drop(ours);
        read(&theirs, 1000, soon())
    }

    #[test]
    fn messages_cross() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        write(&ours, &["a", "b"]).unwrap();
        assert_eq!(read::<Vec<String>>(&theirs, 1000, soon()).unwrap(), ["a", "b"]);
        assert!(matches!(read::<Vec<String>>(&theirs, 3, Some(Instant::now())), Err(WireError::Broken(_))));
    }

    #[test]
    fn odd_answers_are_errors() {
        assert!(matches!(answer_to(b""), Err(WireError::Closed)));
        assert!(matches!(answer_to(b"{\"entries\":[]}\n"), Err(WireError::Foreign)));
        assert!(matches!(answer_to(b"brid"), Err(WireError::Broken(_))));
        let framed = |length: u32, body: &[u8]| [&MARK[..], &length.to_le_bytes(), body].concat();
        assert!(matches!(answer_to(&framed(u32::MAX, b"")), Err(WireError::TooLong(..))));
        assert!(matches!(answer_to(&framed(4, b"")), Err(WireError::Broken(_))));
        assert!(matches!(answer_to(&framed(4, b"\xff\xfe\0\0")), Err(WireError::Foreign)));
        assert!(matches!(answer_to(&framed(2, b"{}")), Err(WireError::Foreign)));
    }

    /// Each byte in time does not make the whole in time.
    #[test]
    fn a_slow_answer_is_not_waited_for() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let dripping = thread::spawn(move || {
            while ours.write_all(&MARK[..1]).is_ok() {
                thread::sleep(Duration::from_millis(50));
            }
        });
        let deadline = Some(Instant::now() + Duration::from_millis(200));
        assert!(matches!(read::<Vec<String>>(&theirs, 1000, deadline), Err(WireError::Broken(_))));
        drop(theirs);
        dripping.join().unwrap();
    }
}
