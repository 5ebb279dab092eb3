//! One flow between two socket pairs, without a relay around it.

use std::{io::Read, io::Write, os::unix::net::UnixStream, thread};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::*;

fn stream(socket: UnixStream) -> Stream {
    socket.set_nonblocking(true).unwrap();
    Stream::new(socket.into(), false).unwrap()
}

/// Runs one flow with 8 MiB in it and says whether it still splices at the end, and what arrived.
fn flow_through(prepare: impl Fn(&Stream)) -> (bool, usize, bool) {
    const LEN: usize = 8 << 20;
    let bytes: Vec<u8> = (0..LEN).map(|i| (i * 31 + (i >> 9)) as u8).collect();
    let (mut sender, source) = UnixStream::pair().unwrap();
    let (sink, mut receiver) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            sender.write_all(&bytes).unwrap();
            sender.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let received = scope.spawn(|| {
            let mut all = Vec::new();
            receiver.read_to_end(&mut all).unwrap();
            all == bytes
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (flow, taken) = runtime.block_on(async {
            let (source, sink) = (stream(source), stream(sink));
            prepare(&sink);
            let ledger = Arc::new(Ledger::new(1000, 1 << 30));
            let (tools, taken, mut flow) =
                (Tools::new(&ledger), Counter::default(), Flow::new(Vec::new(), Piece::FULL));
            std::future::poll_fn(|cx| flow.poll(cx, (&source, &sink), &tools, &taken)).await.unwrap();
            (flow, taken.get())
        });
        (flow.splice_refused, taken as usize - LEN, received.join().unwrap())
    })
}

#[test]
fn bulk_is_spliced() {
    assert_eq!(flow_through(|_| ()), (false, 0, true));
}

/// splice(2) answers EINVAL for a destination opened with O_APPEND: the stand-in for every socket that
/// refuses it.
#[test]
fn a_sink_that_refuses_splice_is_copied_to_and_nothing_is_lost() {
    let refuse = |sink: &Stream| fcntl_setfl(sink, fcntl_getfl(sink).unwrap() | OFlags::APPEND).unwrap();
    assert_eq!(flow_through(refuse), (true, 0, true));
}
