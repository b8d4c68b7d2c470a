//! Unix sockets that listen at a path.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::Path,
};

use tokio::net::UnixListener;

/// Listens at `path`, in place of a socket there that nobody answers at any more.
///
/// # Errors
///
/// When somebody answers there, there is something else, or the system refuses.
pub(crate) fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let refuse = |kind, why| Err(io::Error::new(kind, format!("{}: {why}", path.display())));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            refuse(io::ErrorKind::AlreadyExists, "there is a file that is no socket")
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            refuse(io::ErrorKind::AddrInUse, "another process answers there; stop it first")
        }
        Ok(_) => fs::remove_file(path),
    }
}
