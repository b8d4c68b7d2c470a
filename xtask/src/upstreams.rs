//! The second host's servers: HTTP on port 80 of each address, saying where a request arrived; and one for names.

mod dns;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, TcpListener, TcpStream},
};

use anyhow::Result;

/// Serves until it is killed.
pub(crate) fn run(addresses: &[IpAddr]) -> Result<()> {
    addresses.iter().copied().filter(|address| dns::SERVES.contains(address)).try_for_each(dns::serve)?;
    let listeners = addresses.iter().map(|address| TcpListener::bind((*address, 80)));
    let threads = listeners
        .map(|listener| {
            let listener = listener?;
            // A thread each: a client may say nothing for ever.
            let answer = |stream| drop(std::thread::spawn(move || answer(stream)));
            Ok(std::thread::spawn(move || listener.incoming().flatten().for_each(answer)))
        })
        .collect::<Result<Vec<_>>>()?;
    threads.into_iter().for_each(|thread| drop(thread.join()));
    Ok(())
}

fn answer(stream: TcpStream) {
    let Ok(local) = stream.local_addr() else { return };
    let mut request = String::new();
    // A client that sends nothing, or goes away, gets nothing.
    if BufReader::new(&stream).read_line(&mut request).is_err() {
        return;
    }
    let body = format!("upstream {} got {}", local.ip(), request.trim_end());
    let _ = write!(
        &stream,
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
}
