//! Lines with descriptors, on a Unix stream.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::{MaybeUninit, take},
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::{io::Interest, net::UnixStream};

/// How many descriptors may come with a line.
pub const MAX_DESCRIPTORS: usize = 4;

/// A line without its newline, and the descriptors that came with it.
#[derive(Debug, Default)]
pub struct Line {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// In the order in which they were sent.
    pub descriptors: Vec<OwnedFd>,
}

/// What of a stream was read and not yet taken.
#[derive(Debug)]
pub struct Lines {
    longest: usize,
    whole: VecDeque<Line>,
    begun: Line,
}

impl Lines {
    /// Of a stream whose lines have at most so many bytes.
    pub fn new(longest: usize) -> Self {
        Self { longest, whole: VecDeque::new(), begun: Line::default() }
    }

    /// The next line; `None` at the end of the stream. Nothing is lost where this is given up.
    ///
    /// # Errors
    ///
    /// When the system says so, or a line is longer than may be.
    pub async fn next(&mut self, stream: &UnixStream) -> io::Result<Option<Line>> {
        loop {
            if let Some(line) = self.whole.pop_front() {
                return Ok(Some(line));
            }
            let mut buffer = [0; 16 * 1024];
            let (read, descriptors) = stream
                .async_io(Interest::READABLE, || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                    let mut control = RecvAncillaryBuffer::new(&mut space);
                    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
                    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags)?;
                    let rights = control.drain().filter_map(|message| match message {
                        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
                        _ => None,
                    });
                    Ok((received.bytes, rights.flatten().collect()))
                })
                .await?;
            if read == 0 {
                return Ok(None);
            }
            self.take(&buffer[..read], descriptors)?;
        }
    }

    /// The kernel hands out descriptors with the first of the bytes that they were sent with, and nothing that was sent after
    /// these (`unix_stream_read_generic`, <https://github.com/torvalds/linux/blob/v6.12/net/unix/af_unix.c#L2641>). So they
    /// are the last line's.
    fn take(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let mut parts = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            self.begun.bytes.extend_from_slice(part);
            if self.begun.bytes.len() >= self.longest {
                let message = format!("a line is longer than {} bytes", self.longest);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            if parts.peek().is_some() {
                self.whole.push_back(take(&mut self.begun));
            }
        }
        let last = match self.whole.back_mut() {
            Some(last) if self.begun.bytes.is_empty() => last,
            _ => &mut self.begun,
        };
        last.descriptors.extend(descriptors);
        Ok(())
    }
}

/// Sends a line and its newline, with descriptors.
///
/// # Errors
///
/// When the system says so. Some of the line may have been sent then, and more if this is given up.
pub async fn send(stream: &UnixStream, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let line = [line, b"\n"].concat();
    let mut sent = 0;
    while sent < line.len() {
        sent += stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if sent == 0 && !descriptors.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(descriptors));
                }
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                Ok(sendmsg(stream, &[IoSlice::new(&line[sent..])], &mut control, flags)?)
            })
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn descriptors_come_with_their_line() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let pipe = io::pipe().expect("a pipe");
        let two = [pipe.0.as_fd(), pipe.1.as_fd()];
        let long = vec![b'x'; 100_000];
        let sending = async {
            send(&theirs, b"first", &[]).await.expect("sent");
            send(&theirs, b"second", &two).await.expect("sent");
            send(&theirs, b"third", &[]).await.expect("sent");
            send(&theirs, &long, &two[..1]).await.expect("sent");
            send(&theirs, b"last", &[]).await.expect("sent");
            drop(theirs);
        };
        let reading = async {
            let (mut lines, mut read) = (Lines::new(200_000), vec![]);
            while let Some(line) = lines.next(&ours).await.expect("a line") {
                read.push((line.bytes.len(), line.descriptors.len()));
            }
            read
        };
        let ((), read) = tokio::join!(sending, reading);
        assert_eq!(read, [(5, 0), (6, 2), (5, 0), (100_000, 1), (4, 0)]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_line_without_an_end_is_an_error() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        send(&theirs, &[b'x'; 100], &[]).await.expect("sent");
        let error = Lines::new(100).next(&ours).await.expect_err("too long");
        assert_eq!(error.to_string(), "a line is longer than 100 bytes");
    }
}
