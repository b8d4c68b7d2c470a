//! `metrics`: what the daemon knows, for Prometheus.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    command::{args::MetricsArgs, client},
    report::metrics::exposition,
};

/// Prints the metrics, or puts them into a file.
pub(super) fn metrics(args: &MetricsArgs) -> Result<()> {
    let text = exposition(&client::ask_status(&args.control)?)?;
    match &args.textfile {
        Some(path) => replace(path, &text).with_context(|| format!("cannot write {}", path.display())),
        None => Ok(std::io::stdout().write_all(text.as_bytes())?),
    }
}

/// Puts a file in the place of another, so that a reader sees the old one or the new one, whole.
fn replace(path: &Path, text: &str) -> Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Not by a name that a collector reads.
    let mut file =
        tempfile::Builder::new().prefix(".opencode-egress-").suffix(".tmp").tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_textfile_is_replaced_whole_and_readable_by_all() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("opencode_egress.prom");
        fs::write(&path, "old").expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
        replace(&path, "new").expect("replaced");
        assert_eq!(fs::read_to_string(&path).expect("a file"), "new");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o644);
        let names: Vec<_> = fs::read_dir(&directory).expect("a directory").flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }
}
