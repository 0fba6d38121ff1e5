//! Frames on a stream: one request, one response, each with its length in front.
//!
//! ```text
//! request    length u32 BE | body
//! response   length u32 BE | status u8 (0 done, 1 refused, 2 busy) | body     (length counts the body alone)
//! ```
//!
//! What always holds: a length over the bound of the protocol ends the stream before memory is taken for it, and memory for
//! a request grows only as its bytes arrive, so that a peer pays with its own traffic for what it makes us hold.

use std::io;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{Either, Shared, select};
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::request_response::Codec;

use crate::handler::REASON_BYTES_MAX;
use crate::protocol::Protocol;

/// How much memory is taken at a time for a request that is still arriving, in bytes.
const GROWTH_BYTES: usize = 64 * 1024;

const DONE: u8 = 0;
const REFUSED: u8 = 1;
const BUSY: u8 = 2;

/// Resolves, either way, when nobody waits for the answer any more.
pub(crate) type Cancel = Shared<oneshot::Receiver<()>>;

/// A request on its way in (no `cancel`) or out.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) body: Bytes,
    pub(crate) cancel: Option<Cancel>,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Done(Bytes),
    Refused(String),
    Busy,
}

/// Reads and writes the frames; a copy per stream, which remembers who waits for the answer.
#[derive(Clone, Default)]
pub(crate) struct Frames {
    cancel: Option<Cancel>,
}

impl Codec for Frames {
    type Protocol = Protocol;
    type Request = Request;
    type Response = Reply;

    async fn read_request<T>(&mut self, protocol: &Protocol, io: &mut T) -> io::Result<Request>
    where
        T: AsyncRead + Unpin + Send,
    {
        let len = read_len(io, protocol.request_bytes_max()).await?;
        let mut body = Vec::new();
        while body.len() < len {
            let start = body.len();
            body.resize(len.min(start + GROWTH_BYTES.max(start)), 0);
            io.read_exact(&mut body[start..]).await?;
        }
        Ok(Request { body: body.into(), cancel: None })
    }

    async fn read_response<T>(&mut self, protocol: &Protocol, io: &mut T) -> io::Result<Reply>
    where
        T: AsyncRead + Unpin + Send,
    {
        let cancel = self.cancel.take();
        unless_cancelled(cancel, read_reply(io, protocol.response_bytes_max())).await
    }

    async fn write_request<T>(&mut self, _: &Protocol, io: &mut T, request: Request) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        self.cancel = request.cancel;
        let cancel = self.cancel.clone();
        unless_cancelled(cancel, async {
            io.write_all(&prefix(&request.body)?).await?;
            io.write_all(&request.body).await
        })
        .await
    }

    async fn write_response<T>(&mut self, protocol: &Protocol, io: &mut T, reply: Reply) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let (status, body) = match reply {
            Reply::Done(body) if body.len() > protocol.response_bytes_max() => {
                (REFUSED, Bytes::from_static(b"the answer is too long for the protocol"))
            }
            Reply::Done(body) => (DONE, body),
            Reply::Refused(reason) => (REFUSED, Bytes::from(cut(reason).into_bytes())),
            Reply::Busy => (BUSY, Bytes::new()),
        };
        io.write_all(&prefix(&body)?).await?;
        io.write_all(&[status]).await?;
        io.write_all(&body).await
    }
}

async fn unless_cancelled<T>(
    cancel: Option<Cancel>,
    work: impl Future<Output = io::Result<T>> + Send,
) -> io::Result<T> {
    let Some(cancel) = cancel else { return work.await };
    match select(std::pin::pin!(work), cancel).await {
        Either::Left((done, _)) => done,
        Either::Right(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "nobody waits for the answer")),
    }
}

async fn read_reply<T: AsyncRead + Unpin>(io: &mut T, bytes_max: usize) -> io::Result<Reply> {
    let len = read_len(io, bytes_max.max(REASON_BYTES_MAX)).await?;
    let mut status = [0];
    io.read_exact(&mut status).await?;
    match status[0] {
        DONE if len <= bytes_max => {
            // We asked this peer, and how many answers we wait for is bounded: the whole length may be taken at once.
            let mut body = vec![0; len];
            io.read_exact(&mut body).await?;
            Ok(Reply::Done(body.into()))
        }
        REFUSED if len <= REASON_BYTES_MAX => {
            let mut reason = vec![0; len];
            io.read_exact(&mut reason).await?;
            Ok(Reply::Refused(printable(&reason)))
        }
        BUSY if len == 0 => Ok(Reply::Busy),
        _ => Err(invalid("a response has an unknown status or a wrong length")),
    }
}

async fn read_len<T: AsyncRead + Unpin>(io: &mut T, bytes_max: usize) -> io::Result<usize> {
    let mut prefix = [0; 4];
    io.read_exact(&mut prefix).await?;
    let len = usize::try_from(u32::from_be_bytes(prefix)).map_err(|_| invalid("a frame is too long"))?;
    if len > bytes_max { Err(invalid("a frame is too long")) } else { Ok(len) }
}

fn prefix(body: &Bytes) -> io::Result<[u8; 4]> {
    let len = u32::try_from(body.len()).map_err(|_| invalid("a frame is too long"))?;
    Ok(len.to_be_bytes())
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The reason of a stranger ends up in a terminal, so control characters do not pass.
fn printable(reason: &[u8]) -> String {
    String::from_utf8_lossy(reason).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn cut(mut reason: String) -> String {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.truncate(end);
    reason
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::io::Cursor;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn request_of(protocol: Protocol, bytes: &[u8]) -> io::Result<Bytes> {
        block_on(Frames::default().read_request(&protocol, &mut Cursor::new(bytes)))
            .map(|request| request.body)
    }

    fn reply_of(protocol: Protocol, bytes: &[u8]) -> io::Result<Reply> {
        block_on(Frames::default().read_response(&protocol, &mut Cursor::new(bytes)))
    }

    fn written(protocol: Protocol, reply: Reply) -> Vec<u8> {
        let mut bytes = Vec::new();
        block_on(Frames::default().write_response(&protocol, &mut bytes, reply)).unwrap();
        bytes
    }

    #[test]
    fn a_length_over_the_bound_is_refused_whatever_follows() {
        for protocol in Protocol::ALL {
            let over = u32::try_from(protocol.request_bytes_max() + 1).unwrap();
            for len in [over, u32::MAX] {
                let error = request_of(protocol, &len.to_be_bytes()).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{protocol}");
            }
            let mut over = u32::try_from(protocol.response_bytes_max() + 1).unwrap().to_be_bytes().to_vec();
            over.push(DONE);
            assert_eq!(reply_of(protocol, &over).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn an_answer_over_the_bound_becomes_a_refusal() {
        let long = Bytes::from(vec![0; Protocol::Join.response_bytes_max() + 1]);
        let reply = reply_of(Protocol::Join, &written(Protocol::Join, Reply::Done(long))).unwrap();
        assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");
    }

    #[test]
    fn a_reason_is_cut_and_cannot_drive_a_terminal() {
        let long = format!("\x1b[2J{}", "ä".repeat(REASON_BYTES_MAX));
        let Reply::Refused(reason) =
            reply_of(Protocol::Join, &written(Protocol::Join, Reply::Refused(long))).unwrap()
        else {
            panic!("a refusal stays one");
        };
        assert!(reason.len() <= REASON_BYTES_MAX && !reason.contains('\x1b'));
    }

    #[test]
    fn an_answer_nobody_waits_for_is_not_read() {
        let (waiter, cancel) = oneshot::channel();
        drop(waiter);
        let mut frames = Frames { cancel: Some(futures::FutureExt::shared(cancel)) };
        let never = &mut futures::io::Cursor::new(Vec::new());
        let error = block_on(frames.read_response(&Protocol::Join, never)).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::UnexpectedEof));
    }

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_written_is_read(body in proptest::collection::vec(any::<u8>(), 0..140_000)) {
            let body = Bytes::from(body);
            let mut bytes = Vec::new();
            let request = Request { body: body.clone(), cancel: None };
            block_on(Frames::default().write_request(&Protocol::Keeper, &mut bytes, request)).unwrap();
            prop_assert_eq!(request_of(Protocol::Keeper, &bytes).unwrap(), body.clone());
            let bytes = written(Protocol::Keeper, Reply::Done(body.clone()));
            prop_assert_eq!(reply_of(Protocol::Keeper, &bytes).unwrap(), Reply::Done(body));
            prop_assert!(reply_of(Protocol::Keeper, &bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = request_of(Protocol::Join, &bytes);
            let _ = reply_of(Protocol::Join, &bytes);
        }
    }
}
