//! What runs in confined units when the machine is under load: it tries what is allowed and what is not, and says so
//! when one goes the other way. The tests start it.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// What to try.
#[derive(clap::Subcommand)]
pub(crate) enum Args {
    /// Until SIGTERM: an allowed connection, then a denied one and a denied datagram
    Both {
        allowed: SocketAddr,
        denied: SocketAddr,
        /// Where the number of denied attempts is added up in the end
        total: PathBuf,
        /// Resolve names below this one too, and connect to them; names below the one that has `un` in front of it must not exist
        #[arg(long)]
        below: Option<String>,
    },
    /// So many denied connections, to one destination and to many in turn
    Flood { denied: IpAddr, count: u64 },
}

/// Tries it, and fails at the first attempt that passes though it is denied, or is denied though it is allowed.
pub(crate) fn run(args: &Args) -> Result<()> {
    match args {
        Args::Both { allowed, denied, total, below } => both(*allowed, *denied, total, below.as_deref()),
        Args::Flood { denied, count } => flood(*denied, *count),
    }
}

/// How long a name may not be resolved: daemon and resolver are killed, and a question is waited for for seconds.
const PATIENCE: Duration = Duration::from_secs(30);

fn both(allowed: SocketAddr, denied: SocketAddr, total: &Path, below: Option<&str>) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop))?;
    let datagrams = UdpSocket::bind(if denied.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    let mut attempts = 0_u64;
    // At least once, so that a unit that is stopped at once has tried what it may not, too.
    loop {
        is_denied("a connection", TcpStream::connect(denied))?;
        is_denied("a datagram", datagrams.send_to(b"x", denied))?;
        attempts += 2;
        request(allowed).context("wrongly denied")?;
        if let Some(zone) = below {
            named(attempts / 2, zone)?;
        }
        if stop.load(Ordering::Relaxed) {
            return add_to(total, attempts);
        }
        // So that neither ends of the cable nor the port range are what this measures.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A listed name, which is reached at each of its addresses, and one that is not. There are so many that the memory of them comes to an end.
fn named(number: u64, zone: &str) -> Result<()> {
    let number = number % 500;
    let unlisted = format!("n{number}.un{zone}.");
    if let Ok(addresses) = (&*unlisted, 80).to_socket_addrs() {
        bail!("leaked: {unlisted} has the addresses {:?}", addresses.collect::<Vec<_>>());
    }
    let listed = format!("n{number}.{zone}.");
    let begin = Instant::now();
    let addresses = loop {
        match (&*listed, 80).to_socket_addrs() {
            Ok(addresses) => break addresses,
            Err(error) if begin.elapsed() > PATIENCE => {
                return Err(error).context(format!("{listed} is not resolved"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    for address in addresses {
        request(address).with_context(|| format!("{listed} is wrongly denied"))?;
    }
    Ok(())
}

fn flood(denied: IpAddr, count: u64) -> Result<()> {
    for number in 0..count {
        // Every other one is new: folding is for the first half, the rate limit for the second.
        let port = if number % 2 == 0 { 80 } else { 1024 + u16::try_from(number % 60_000)? };
        is_denied("a connection", TcpStream::connect((denied, port)))?;
    }
    Ok(())
}

fn is_denied<T>(what: &str, result: std::io::Result<T>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) => bail!("leaked: {what} was not denied but failed with: {error}"),
        Ok(_) => bail!("leaked: {what} was not denied"),
    }
}

fn request(server: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(b"GET /probe HTTP/1.1\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    if reply.contains("upstream") { Ok(()) } else { bail!("{server} answered {reply:?}") }
}

/// Adds a line, whole: others add theirs at the same time.
fn add_to(total: &Path, attempts: u64) -> Result<()> {
    let mut file: File = OpenOptions::new().create(true).append(true).open(total)?;
    Ok(file.write_all(format!("{attempts}\n").as_bytes())?)
}
