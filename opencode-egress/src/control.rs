//! The control socket: one JSON request a connection, one JSON reply a line.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    events::DeniedFlow,
    explain::{Destination, Explanation},
    status::Status,
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
    /// Apply the policy file again.
    Reload,
    /// Take an instance's links away.
    Detach {
        /// The instance.
        instance: String,
    },
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
    /// The conversation broke off.
    #[error("the daemon at {path} broke off")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
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
                Err(source) => return Err(ControlError::NoDaemon { path: path.to_owned(), source }),
            }
        };
        let broken = |source| ControlError::Broken { path: path.to_owned(), source };
        let mut line = serde_json::to_vec(request).map_err(|error| broken(error.into()))?;
        line.push(b'\n');
        (&stream).write_all(&line).map_err(broken)?;
        Ok(Self { path: path.to_owned(), stream: BufReader::new(stream) })
    }

    /// The next reply.
    ///
    /// # Errors
    ///
    /// When the daemon refuses, goes away, or says nothing within `timeout`.
    pub fn reply(&mut self, timeout: Option<Duration>) -> Result<Reply, ControlError> {
        let broken = |source| ControlError::Broken { path: self.path.clone(), source };
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
