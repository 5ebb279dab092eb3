//! One netlink request and its whole answer, synchronously, about one network namespace.
//!
//! Invariants: the socket is opened in the namespace that was asked about, whatever thread asks; only the kernel is
//! listened to (the socket is connected to port 0, so the kernel refuses messages from other processes); a dump that
//! changed under our feet (`NLM_F_DUMP_INTR`) is taken again; no input, however malformed, panics.

use std::io::{self, ErrorKind};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NlaBuffer, NlasIterator};
use netlink_sys::{Socket, SocketAddr};

use super::namespace::Namespace;

/// Length of `struct nlmsghdr`, in bytes.
const HEADER_LEN: usize = 16;
/// The kernel never builds a larger dump message (`NLMSG_GOODSIZE` grows to 32 KiB at most).
const RECEIVE_LEN: usize = 64 * 1024;
/// How often a dump is repeated when the table changes while it is read.
const MAX_DUMPS: usize = 8;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Asks for one object. Returns the payloads of the answer, normally exactly one.
///
/// # Errors
/// The kernel's errno (`ENODEV` for an unknown interface), or that of socket(2), send(2), recv(2).
pub(crate) fn get(
    namespace: &Namespace,
    protocol: isize,
    kind: u16,
    body: &[u8],
) -> io::Result<Vec<Vec<u8>>> {
    ask(&open(namespace, protocol)?, kind, body)
}

/// Asks for a whole table. Returns one payload per object, from one uninterrupted pass if possible.
///
/// # Errors
/// As [`get`]. A table that never holds still is returned as last read, which may lack or repeat an entry.
pub(crate) fn dump(
    namespace: &Namespace,
    protocol: isize,
    kind: u16,
    body: &[u8],
) -> io::Result<Vec<Vec<u8>>> {
    ask_for_all(&open(namespace, protocol)?, kind, body)
}

/// Changes something; `NLM_F_ACK` makes the kernel say that it is done.
///
/// # Errors
/// The kernel's errno, or that of socket(2), send(2), recv(2).
pub(crate) fn change(namespace: &Namespace, protocol: isize, kind: u16, body: &[u8]) -> io::Result<()> {
    let socket = open(namespace, protocol)?;
    exchange(&socket, kind, NLM_F_ACK, body).map(drop)
}

/// The value of the first attribute of type `wanted` in a run of attributes; malformed tails end the search.
pub(crate) fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(attributes).map_while(Result::ok).find(|nla| nla.kind() == wanted)?;
    let length = usize::from(NlaBuffer::length(&found));
    found.into_inner().get(4..length)
}

/// Appends one attribute, padded as netlink wants it.
pub(crate) fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Attributes written here are interface names and flags, far below the 64 KiB a u16 can say.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A native-endian u32 at `offset`, if the message is long enough.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(field.try_into().ok()?))
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..offset.checked_add(2)?)?;
    Some(u16::from_ne_bytes(field.try_into().ok()?))
}

struct Reply {
    payloads: Vec<Vec<u8>>,
    interrupted: bool,
}

/// Asks for one object, with a socket that was opened before.
///
/// # Errors
/// As [`get`].
pub(super) fn ask(socket: &Socket, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    Ok(exchange(socket, kind, 0, body)?.payloads)
}

/// Asks for a whole table, with a socket that was opened before.
///
/// # Errors
/// As [`dump`].
pub(super) fn ask_for_all(socket: &Socket, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut answer = exchange(socket, kind, NLM_F_DUMP, body)?;
    for _ in 1..MAX_DUMPS {
        if !answer.interrupted {
            break;
        }
        answer = exchange(socket, kind, NLM_F_DUMP, body)?;
    }
    Ok(answer.payloads)
}

/// A socket that speaks with the kernel only.
///
/// # Errors
/// When the namespace cannot be entered, or there is no socket to be had.
pub(super) fn open(namespace: &Namespace, protocol: isize) -> io::Result<Socket> {
    let socket = namespace.run(|| Socket::new(protocol))??;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn exchange(socket: &Socket, kind: u16, flags: u16, body: &[u8]) -> io::Result<Reply> {
    let length = u32::try_from(HEADER_LEN + body.len()).map_err(|_| malformed("request too long"))?;
    let mut request = Vec::with_capacity(HEADER_LEN + body.len());
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    request.extend_from_slice(&[0; 8]); // sequence and port: one request in flight per socket
    request.extend_from_slice(body);
    retry(|| socket.send(&request, 0))?;

    let is_dump = flags & NLM_F_DUMP != 0;
    let mut answer = Reply { payloads: Vec::new(), interrupted: false };
    let mut buffer = Vec::with_capacity(RECEIVE_LEN);
    loop {
        buffer.clear();
        let received = retry(|| socket.recv(&mut buffer, libc::MSG_TRUNC))?;
        if received > buffer.len() {
            return Err(malformed("answer longer than the receive buffer"));
        }
        if collect(&buffer, &mut answer)? || !is_dump {
            return Ok(answer);
        }
    }
}

/// Reads the messages of one datagram; true once the answer is complete.
fn collect(mut datagram: &[u8], answer: &mut Reply) -> io::Result<bool> {
    while let Some(length) = u32_at(datagram, 0) {
        let length = length as usize;
        let message =
            datagram.get(..length).filter(|_| length >= HEADER_LEN).ok_or_else(|| malformed("bad length"))?;
        let kind = u16_at(message, 4).unwrap_or(NLMSG_ERROR);
        answer.interrupted |= u16_at(message, 6).unwrap_or(0) & NLM_F_DUMP_INTR != 0;
        match kind {
            // Both carry an errno, negated; 0 is success.
            NLMSG_ERROR | NLMSG_DONE => match u32_at(message, HEADER_LEN).unwrap_or(0).cast_signed() {
                errno if errno < 0 => return Err(io::Error::from_raw_os_error(errno.saturating_neg())),
                _ => return Ok(true),
            },
            _ => answer.payloads.push(message[HEADER_LEN..].to_vec()),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(false)
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("malformed netlink message ({what})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_found_and_bounded() {
        let mut body = Vec::new();
        push_attribute(&mut body, 3, b"docker0\0");
        push_attribute(&mut body, 7, &[1]);
        assert_eq!(body.len(), 12 + 8);
        assert_eq!(attribute(&body, 3), Some(&b"docker0\0"[..]));
        assert_eq!(attribute(&body, 7), Some(&[1][..]));
        assert_eq!(attribute(&body, 9), None);
        assert_eq!(attribute(&body[..10], 3), None, "a cut attribute is not read");
    }

    #[test]
    fn kernel_errors_become_errnos() {
        let mut message = vec![20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&(-libc::ENODEV).to_ne_bytes());
        let mut answer = Reply { payloads: Vec::new(), interrupted: false };
        let error = collect(&message, &mut answer).expect_err("an error message");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut answer = Reply { payloads: Vec::new(), interrupted: false };
            let _ = collect(&bytes, &mut answer);
            let _ = attribute(&bytes, 3);
        }
    }
}
