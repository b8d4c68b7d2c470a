//! The control socket: one JSON request a connection, one JSON reply a line.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    kernel::ring::DeniedFlow,
    policy::{
        explain::{Destination, Explanation},
        suggest::DeniedDestination,
    },
    report::{human::local_time, status::Status},
};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Confine the calling unit.
    Attach {
        /// The instance that it says it belongs to.
        instance: String,
    },
    /// Everything that `status` shows.
    Status,
    /// Judge a flow.
    Explain {
        /// The instance.
        instance: String,
        /// The flow.
        destination: Destination,
    },
    /// Denied flows: the last ones, then, with `follow`, those to come.
    Events {
        /// Only this instance's.
        instance: Option<String>,
        /// Go on as they come.
        follow: bool,
    },
    /// Every destination that was denied to an instance, as far as the kernel remembers.
    Seen {
        /// The instance.
        instance: String,
    },
    /// Apply the policy file again.
    Reload,
    /// Take an instance's links away.
    Detach {
        /// The instance.
        instance: String,
    },
}

/// Why bytes are no request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// More than the daemon reads.
    #[error("the request is not over after {MAX_REQUEST} bytes, and a longer one is not read")]
    TooLong,
    /// Something else.
    #[error("this is no request")]
    Malformed(#[from] serde_json::Error),
}

impl Request {
    /// The request in what a client sent, up to its first newline and at most [`MAX_REQUEST`] bytes of it.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn parse(line: &[u8]) -> Result<Self, RequestError> {
        if line.len() as u64 >= MAX_REQUEST && line.last() != Some(&b'\n') {
            return Err(RequestError::TooLong);
        }
        Ok(serde_json::from_slice(line)?)
    }
}

/// What the daemon answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The unit is confined.
    Attached {
        /// The unit.
        unit: String,
        /// The generation of its policy.
        generation: u32,
    },
    /// `status`.
    Status(Box<Status>),
    /// `explain`.
    Explained(Explanation),
    /// One denied flow.
    Event(LoggedEvent),
    /// The end of what there is.
    End,
    /// Every destination that was denied, as far as the kernel remembers.
    Seen(Remembered),
    /// The file was applied: what changed, a line each.
    Reloaded {
        /// `+` and `-` lines.
        changes: Vec<String>,
    },
    /// Links were taken away.
    Detached {
        /// From these units.
        units: Vec<String>,
    },
    /// It was not done, and why.
    Error(String),
}

/// What the kernel remembers of an instance's denials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The destinations.
    pub destinations: Vec<DeniedDestination>,
    /// How many it remembers for all instances together.
    pub of_all_instances: usize,
}

/// A denied flow with its instance and time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedEvent {
    /// Seconds since 1970.
    pub time: u64,
    /// The instance.
    pub instance: String,
    /// The flow.
    #[serde(flatten)]
    pub flow: DeniedFlow,
}

impl fmt::Display for LoggedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", local_time(self.time), self.instance, self.flow)
    }
}

/// Why the daemon could not be asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody answers.
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
    /// Somebody else answers.
    #[error(
        "what answers at {path} runs as user {uid}, so it is not the daemon, which is root's; find out who made the socket"
    )]
    Impostor {
        /// The socket.
        path: PathBuf,
        /// Whose process it is.
        uid: u32,
    },
    /// The socket is root's.
    #[error("only root may ask the daemon at {path}; use sudo")]
    NotRoot {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the daemon at {path} broke off")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is there, and too busy or stuck.
    #[error(
        "the daemon at {path} gave no answer within {patience:?}; is it busy or stuck? (systemctl status opencode-egress)"
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// The longest request that the daemon reads, in bytes.
pub const MAX_REQUEST: u64 = 64 * 1024;

/// A conversation with the daemon.
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
        let broken = |source| ControlError::Broken { path: path.to_owned(), source };
        // `attach` believes what it is told, and a unit starts because of it.
        let uid = rustix::net::sockopt::socket_peercred(&stream)
            .map_err(|errno| broken(errno.into()))?
            .uid
            .as_raw();
        if uid != 0 {
            return Err(ControlError::Impostor { path: path.to_owned(), uid });
        }
        let mut line = serde_json::to_vec(request).map_err(|error| broken(error.into()))?;
        line.push(b'\n');
        (&stream).write_all(&line).map_err(broken)?;
        Ok(Self { path: path.to_owned(), stream: BufReader::new(stream) })
    }

    /// The next reply.
    ///
    /// # Errors
    ///
    /// When the daemon refuses, goes away, or says nothing within `timeout`, which is more than none.
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

fn missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_cut_off_is_called_too_long() {
        let longest = usize::try_from(MAX_REQUEST).expect("a length");
        let cut = vec![b' '; longest];
        assert!(matches!(Request::parse(&cut), Err(RequestError::TooLong)));
        let mut whole = cut;
        whole[..8].copy_from_slice(b"\"status\"");
        whole[longest - 1] = b'\n';
        assert!(matches!(Request::parse(&whole), Ok(Request::Status)));
        assert!(matches!(Request::parse(b"\xff\n"), Err(RequestError::Malformed(_))));
    }
}
