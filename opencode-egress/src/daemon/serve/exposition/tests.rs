use std::{cell::Cell, os::unix::net::UnixListener as StdUnixListener, path::Path};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::LocalSet,
};

use super::*;

fn parse(text: &str) -> Result<MetricsAddress, String> {
    text.parse().map_err(|error: AddressError| error.to_string())
}

#[test]
fn only_this_machine_is_an_address() {
    assert!(parse("127.0.0.1:9642").is_ok());
    assert!(parse("127.8.8.8:1").is_ok());
    assert!(parse("[::1]:9642").is_ok());
    assert!(parse("/run/opencode-egress/metrics.sock").is_ok());
    for beyond in ["0.0.0.0:9642", "[::]:9642", "192.0.2.1:80", "[::ffff:192.0.2.1]:80"] {
        let error = parse(beyond).expect_err(beyond);
        assert!(error.contains("is not a loopback address"), "{beyond}: {error}");
    }
    for neither in ["", "localhost:9642", "127.0.0.1", "9642", "metrics.sock"] {
        let error = parse(neither).expect_err(neither);
        assert!(error.contains("as in 127.0.0.1:9642"), "{neither}: {error}");
    }
    assert!(parse("127.0.0.1:0").expect_err("port 0").contains("choose one"));
    assert!(parse(&format!("/{}", "x".repeat(200))).is_err());
}

/// Runs `client` beside a server of `exposition` at a socket in a fresh directory.
fn beside<T>(
    exposition: impl Fn() -> Result<String, String> + 'static,
    client: impl AsyncFnOnce(&Path) -> T,
) -> T {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("metrics.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let listener =
            MetricsListener::bind(&MetricsAddress(Place::Unix(path.clone()))).await.expect("a listener");
        spawn_local(listener.serve(exposition));
        client(&path).await
    })
}

async fn said(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

async fn ask(path: &Path, method: &str, target: &str) -> String {
    let mut stream = UnixStream::connect(path).await.expect("a connection");
    said(&mut stream, &format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

#[test]
fn metrics_are_there_to_read() {
    beside(
        || Ok("up 1\n".into()),
        async |path| {
            let answer = ask(path, "GET", "/metrics?x=y").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(
                answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"),
                "{answer}"
            );
            assert!(answer.ends_with("\r\n\r\nup 1\n"), "{answer}");
            let head = ask(path, "HEAD", "/metrics").await;
            assert!(head.contains("content-length: 5\r\n") && head.ends_with("\r\n\r\n"), "{head}");
            let post = ask(path, "POST", "/metrics").await;
            assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET, HEAD\r\n"), "{post}");
            assert!(ask(path, "GET", "/").await.starts_with("HTTP/1.1 404 "));
            let garbage = said(&mut UnixStream::connect(path).await.expect("a connection"), "{}\n\n").await;
            assert!(garbage.starts_with("HTTP/1.1 400 "), "{garbage}");
        },
    );
}

#[test]
fn what_cannot_be_read_is_an_error_and_not_remembered() {
    let first = Cell::new(true);
    let exposition = move || if first.replace(false) { Err("no map".into()) } else { Ok("up 1\n".into()) };
    beside(exposition, async |path| {
        let answer = ask(path, "GET", "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 500 ") && answer.ends_with("no map\n"), "{answer}");
        assert!(ask(path, "GET", "/metrics").await.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn many_readers_cost_one_exposition_a_while() {
    let asked = Rc::new(Cell::new(0));
    let counted = Rc::clone(&asked);
    let exposition = move || {
        counted.set(counted.get() + 1);
        Ok("up 1\n".into())
    };
    let begin = Instant::now();
    beside(exposition, async |path| {
        for _ in 0..50 {
            ask(path, "GET", "/metrics").await;
        }
    });
    let most = begin.elapsed().as_secs() + 1;
    assert!(asked.get() <= most, "{} times in {:?}", asked.get(), begin.elapsed());
}

#[test]
fn silent_readers_do_not_keep_others_out_for_long() {
    let begin = Instant::now();
    beside(
        || Ok("up 1\n".into()),
        async |path| {
            let mut silent = vec![];
            for _ in 0..CONVERSATIONS {
                silent.push(UnixStream::connect(path).await.expect("a connection"));
            }
            assert!(ask(path, "GET", "/metrics").await.starts_with("HTTP/1.1 200 "));
        },
    );
    assert!(begin.elapsed() >= PATIENCE / 2, "nobody was kept out, so nothing was shown");
}

#[test]
fn loopback_answers_too() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let listener = MetricsListener::bind(&MetricsAddress(Place::Tcp(([127, 0, 0, 1], 0).into()))).await;
        let listener = listener.expect("a listener");
        let MetricsListener::Tcp(tcp) = &listener else { panic!("another listener") };
        let address = tcp.local_addr().expect("an address");
        spawn_local(listener.serve(|| Ok("up 1\n".into())));
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let answer = said(&mut stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.ends_with("up 1\n"), "{answer}");
    });
}

#[test]
fn a_stale_socket_is_replaced_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("metrics.sock");
    let address = MetricsAddress(Place::Unix(path.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let bind = || runtime.block_on(MetricsListener::bind(&address));

    let live = StdUnixListener::bind(&path).expect("a socket");
    assert_eq!(bind().err().map(|error| error.kind()), Some(io::ErrorKind::AddrInUse));
    drop(live);
    let listener = bind().expect("the stale socket replaced");
    drop(listener);
    assert!(!path.exists(), "it stays behind");

    fs::write(&path, "precious").expect("a file");
    assert_eq!(bind().err().map(|error| error.kind()), Some(io::ErrorKind::AlreadyExists));
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}
