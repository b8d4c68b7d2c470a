//! The client's end of the control socket.

use std::{
    io::{self, BufRead as _, BufReader, IoSlice, Write as _},
    mem::MaybeUninit,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::control::request::{Reply, Request};

/// Why the daemon could not be asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No process listens at the socket.
    #[error(
        "no daemon answers at {path}; is opencode-egress.service running? (systemctl status opencode-egress)"
    )]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The process that listens at the socket is not root's.
    #[error(
        "what answers at {path} runs as user {uid}, so it is not the daemon, which is root's; find out who made the socket"
    )]
    Impostor {
        /// The socket.
        path: PathBuf,
        /// Whose process it is.
        uid: u32,
    },
    /// The caller is not root, and may not connect.
    #[error("only root may ask the daemon at {path}; use sudo")]
    NotRoot {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The connection ended, or what came is no reply.
    #[error("the daemon at {path} broke off")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The daemon took the request and gave no reply in time.
    #[error(
        "the daemon at {path} gave no answer within {patience:?}; is it busy or stuck? (systemctl status opencode-egress)"
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The daemon did not do what it was asked, and said why.
    #[error("{0}")]
    Refused(String),
}

/// A connection to the daemon on which a request was sent.
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Sends a request, waiting up to `patience` for a daemon that is about to start.
    ///
    /// # Errors
    ///
    /// When nobody answers in time.
    pub fn ask(path: &Path, request: &Request, patience: Duration) -> Result<Self, ControlError> {
        Self::ask_with(path, request, None, patience)
    }

    /// As [`Self::ask`], and hands a descriptor over with the request (unix(7), `SCM_RIGHTS`).
    ///
    /// # Errors
    ///
    /// When nobody answers in time.
    pub fn ask_with(
        path: &Path,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> Result<Self, ControlError> {
        let client = Self::connect(path, patience)?;
        let stream = client.stream.get_ref();
        let broken = |source| ControlError::Broken { path: path.to_owned(), source };
        let mut line = serde_json::to_vec(request).map_err(|error| broken(error.into()))?;
        line.push(b'\n');
        let sent = match descriptor {
            Some(descriptor) => send_with(stream, &line, descriptor).map_err(broken)?,
            None => 0,
        };
        (&*stream).write_all(&line[sent..]).map_err(broken)?;
        Ok(client)
    }

    /// Connects, which is all that some sockets of the daemon's take, waiting up to `patience` for one that is about to start.
    ///
    /// # Errors
    ///
    /// When nobody answers in time, or somebody else than root.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, ControlError> {
        let deadline = Instant::now() + patience;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if missing(&error) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(ControlError::NotRoot { path: path.to_owned(), source });
                }
                Err(source) => return Err(ControlError::NoDaemon { path: path.to_owned(), source }),
            }
        };
        // `attach` believes what it is told, and a unit starts because of it.
        let uid = rustix::net::sockopt::socket_peercred(&stream)
            .map_err(|errno| ControlError::Broken { path: path.to_owned(), source: errno.into() })?
            .uid
            .as_raw();
        if uid != 0 {
            return Err(ControlError::Impostor { path: path.to_owned(), uid });
        }
        Ok(Self { path: path.to_owned(), stream: BufReader::new(stream) })
    }

    /// The next reply.
    ///
    /// # Errors
    ///
    /// When the daemon refuses the request, goes away, or says nothing within `timeout`, which must not be zero.
    pub fn reply(&mut self, timeout: Option<Duration>) -> Result<Reply, ControlError> {
        let broken = |source: io::Error| match (source.kind(), timeout) {
            (io::ErrorKind::WouldBlock, Some(patience)) => {
                ControlError::Silent { path: self.path.clone(), patience }
            }
            _ => ControlError::Broken { path: self.path.clone(), source },
        };
        self.stream.get_ref().set_read_timeout(timeout).map_err(broken)?;
        let mut line = String::new();
        if self.stream.read_line(&mut line).map_err(broken)? == 0 {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_str(&line).map_err(|error| broken(error.into()))? {
            Reply::Error(message) => Err(ControlError::Refused(message)),
            reply => Ok(reply),
        }
    }
}

/// Sends the beginning of a message with a descriptor, and returns how much of it that was.
fn send_with(stream: &UnixStream, message: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    Ok(sendmsg(stream, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?)
}

fn missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
