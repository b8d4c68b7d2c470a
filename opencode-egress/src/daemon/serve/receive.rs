//! A request and the descriptor that may come with it.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::{io::Interest, net::UnixStream};

use crate::control::request::MAX_REQUEST;

/// Reads up to a newline, the end, or as much as a request may be. Of several descriptors the last one is kept.
pub(super) async fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let (mut line, mut descriptor) = (vec![], None);
    while line.last() != Some(&b'\n') && (line.len() as u64) < MAX_REQUEST {
        let mut buffer = [0; 4096];
        let room = buffer.len().min(usize::try_from(MAX_REQUEST).unwrap_or(usize::MAX) - line.len());
        let (read, found) = stream
            .async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
                let received =
                    recvmsg(stream, &mut [IoSliceMut::new(&mut buffer[..room])], &mut control, flags)?;
                let rights = control.drain().filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(rights) => Some(rights),
                    _ => None,
                });
                Ok((received.bytes, rights.flatten().last()))
            })
            .await?;
        descriptor = found.or(descriptor);
        if read == 0 {
            break;
        }
        line.extend_from_slice(&buffer[..read]);
    }
    Ok((line, descriptor))
}
