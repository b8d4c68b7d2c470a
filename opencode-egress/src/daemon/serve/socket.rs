//! Unix sockets that listen at a path.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::FileTypeExt as _},
    path::Path,
};

use rustix::{
    fs::{Mode, fchmod},
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen as listen_at,
        socket_with,
    },
    process::umask,
};
use tokio::net::UnixListener;

/// Connections that wait to be accepted; as many as std's listeners have.
const BACKLOG: i32 = 128;

/// Listens at `path`, in place of a socket there that nobody listens at any more.
///
/// The socket has its mode from the moment when it is there: nothing is done to a path that somebody could have made a link
/// meanwhile.
///
/// # Errors
///
/// When somebody listens there, there is something else, or the system refuses.
pub(crate) fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let (socket, address) = (socket()?, SocketAddrUnix::new(path)?);
    // bind(2) gives the file the socket's mode, less the umask (`unix_bind_bsd`,
    // <https://github.com/torvalds/linux/blob/v6.12/net/unix/af_unix.c#L1240>).
    fchmod(&socket, Mode::from_raw_mode(mode))?;
    let before = umask(Mode::empty());
    let bound = bind(&socket, &address);
    umask(before);
    bound?;
    listen_at(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let refuse = |kind, why| Err(io::Error::new(kind, format!("{}: {why}", path.display())));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            refuse(io::ErrorKind::AlreadyExists, "there is a file that is no socket")
        }
        // One that takes no more connections is somebody's as well.
        Ok(_) => match connect(&socket()?, &SocketAddrUnix::new(path)?) {
            Ok(()) | Err(Errno::AGAIN) => {
                refuse(io::ErrorKind::AddrInUse, "another process listens there; stop it first")
            }
            Err(Errno::CONNREFUSED) => fs::remove_file(path),
            Err(errno) => {
                refuse(io::Error::from(errno).kind(), "it cannot be found out whether somebody listens there")
            }
        },
    }
}

/// One that does not wait.
fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{
            fs::PermissionsExt as _,
            net::{UnixListener as Listener, UnixStream},
        },
        time::{Duration, Instant},
    };

    use super::*;

    fn listen_in_runtime(path: &Path, mode: u32) -> io::Result<UnixListener> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let _entered = runtime.enter();
        listen(path, mode)
    }

    #[test]
    fn a_socket_that_is_held_full_is_somebodys_and_not_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let held = socket().and_then(|socket| {
            bind(&socket, &SocketAddrUnix::new(&path)?)?;
            listen_at(&socket, 0)?;
            Ok(socket)
        });
        let _held = held.expect("a listener");
        let _only = UnixStream::connect(&path).expect("the only one that has room");
        let begin = Instant::now();
        let error = listen_in_runtime(&path, 0o600).expect_err("it is taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_socket_has_its_mode_and_takes_a_stale_ones_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        drop(Listener::bind(&path).expect("one that goes"));
        for mode in [0o600, 0o666] {
            let _listener = listen_in_runtime(&path, mode).expect("a listener");
            let metadata = fs::symlink_metadata(&path).expect("a socket");
            assert_eq!(metadata.permissions().mode() & 0o777, mode);
        }
    }

    /// As when somebody puts a link in the socket's place while the daemon starts, again and again.
    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, target) = (directory.path().join("socket"), directory.path().join("target"));
        fs::write(&target, "").expect("a file");
        fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).expect("its mode");
        let swapped = path.clone();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    if fs::remove_file(&swapped).is_ok() {
                        let _ = std::os::unix::fs::symlink(&target, &swapped);
                    }
                }
            });
            for _ in 0..2000 {
                let _ = listen_in_runtime(&path, 0o666);
                let _ = fs::remove_file(&path);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mode = fs::metadata(&target).expect("the file").permissions().mode() & 0o777;
        assert_eq!(mode, 0o640, "its mode was changed through the link");
    }
}
