//! Metrics over HTTP, for `run --metrics`: on a loopback address or a Unix socket, to read and nothing else.

use std::{
    cell::RefCell,
    convert::Infallible,
    fmt, fs, io,
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::spawn_local,
    time::{sleep, timeout},
};
use tracing::warn;

use crate::{daemon::serve::socket, report::metrics};

/// Conversations at once; others wait in the kernel.
const CONVERSATIONS: usize = 8;
/// How long a conversation may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long one exposition is good. Whoever asks more often costs the daemon nothing.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// Where metrics are served: never beyond this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsAddress(Place);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Why a text is no address to serve metrics on.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is no address and port, and no absolute path.
    #[error(
        "write a loopback address with a port, as in 127.0.0.1:9642, or the absolute path of a Unix socket"
    )]
    Neither,
    /// It is beyond loopback, so that other machines could read.
    #[error(
        "{0} is not a loopback address, and metrics stay on this machine: use 127.0.0.1 or [::1], and a proxy if others are to read"
    )]
    Beyond(SocketAddr),
    /// It has port 0, so that nobody would find it.
    #[error("port 0 is another port at every start; choose one")]
    AnyPort,
    /// It is a path at which there can be no socket.
    #[error("this is no path for a Unix socket")]
    Path(#[source] io::Error),
}

impl FromStr for MetricsAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.starts_with('/') {
            std::os::unix::net::SocketAddr::from_pathname(text).map_err(AddressError::Path)?;
            return Ok(Self(Place::Unix(text.into())));
        }
        match text.parse::<SocketAddr>().map_err(|_| AddressError::Neither)? {
            address if !address.ip().is_loopback() => Err(AddressError::Beyond(address)),
            address if address.port() == 0 => Err(AddressError::AnyPort),
            address => Ok(Self(Place::Tcp(address))),
        }
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Tcp(address) => write!(f, "http://{address}/metrics"),
            Place::Unix(path) => write!(f, "/metrics on {}", path.display()),
        }
    }
}

/// A socket that readers connect to. A Unix socket is removed with it.
pub(crate) enum MetricsListener {
    /// A TCP socket on loopback.
    Tcp(TcpListener),
    /// A Unix socket at a path.
    Unix { listener: UnixListener, _path: RemovedPath },
}

/// A path that is removed when this is dropped.
pub(crate) struct RemovedPath(PathBuf);

impl Drop for RemovedPath {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.0);
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

impl MetricsListener {
    /// Listens. A Unix socket that nobody answers on is replaced; whoever may enter its directory may read.
    ///
    /// # Errors
    ///
    /// When the address is taken, or the path is something else.
    pub(crate) async fn bind(address: &MetricsAddress) -> io::Result<Self> {
        match &address.0 {
            Place::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            Place::Unix(path) => {
                let listener = socket::listen(path, 0o666)?;
                Ok(Self::Unix { listener, _path: RemovedPath(path.clone()) })
            }
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(listener) => Ok(Box::new(listener.accept().await?.0)),
            Self::Unix { listener, .. } => Ok(Box::new(listener.accept().await?.0)),
        }
    }

    /// Answers for as long as it is polled, in a [`tokio::task::LocalSet`]. `exposition` says what, or why not.
    pub(crate) async fn serve(self, exposition: impl Fn() -> Result<String, String> + 'static) {
        let page = Rc::new(Page { exposition, last: RefCell::new(None) });
        let room = Arc::new(Semaphore::new(CONVERSATIONS));
        while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
            let stream = match self.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    warn!("a reader of the metrics could not connect: {error}");
                    sleep(GOOD_FOR).await;
                    continue;
                }
            };
            let page = Rc::clone(&page);
            spawn_local(async move {
                let answer =
                    service_fn(|request| std::future::ready(Ok::<_, Infallible>(page.answer(&request))));
                let conversation =
                    http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), answer);
                // A reader that is too slow or goes away is its own affair.
                let _ = timeout(PATIENCE, conversation).await;
                drop(permit);
            });
        }
    }
}

struct Page<F> {
    exposition: F,
    last: RefCell<Option<(Instant, Bytes)>>,
}

impl<F: Fn() -> Result<String, String>> Page<F> {
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/metrics" {
            return text(StatusCode::NOT_FOUND, "there is nothing but /metrics\n");
        }
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "metrics are to read: GET or HEAD\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match self.current() {
            Ok(body) => {
                let mut response = text(StatusCode::OK, body);
                let media_type = HeaderValue::from_static(metrics::CONTENT_TYPE);
                response.headers_mut().insert(CONTENT_TYPE, media_type);
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn current(&self) -> Result<Bytes, String> {
        let mut last = self.last.borrow_mut();
        if let Some((_, body)) = last.as_ref().filter(|(made, _)| made.elapsed() < GOOD_FOR) {
            return Ok(body.clone());
        }
        let body = Bytes::from((self.exposition)()?);
        *last = Some((Instant::now(), body.clone()));
        Ok(body)
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests;
