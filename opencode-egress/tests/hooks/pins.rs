//! Where pins may be: out of the reach of others than root.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
};

use opencode_egress::kernel::{
    loader::{Lifetime, load},
    pins::{PinError, Pins},
};

use crate::bpffs::Bpffs;

const NOBODY: Option<u32> = Some(65534);

fn said(result: Result<impl Sized, PinError>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

fn lock(base: &Path) -> String {
    said(Pins::below(base).and_then(|pins| pins.lock()))
}

#[track_caller]
fn denies(base: &Path, expect: &str) {
    let why = lock(base);
    assert!(why.contains(expect), "{}: `{why}`, not `{expect}`", base.display());
    let maps = base.join("v9");
    let loaded = load(&Lifetime::Pinned(&maps)).err().map(|error| error.to_string()).unwrap_or_default();
    // What is below the base directory is the lock's to look at.
    assert!(loaded == why || expect.contains("rm -r"), "loading says `{loaded}`");
}

#[test]
fn a_mount_that_others_may_write_to_is_refused() {
    // As `mount -t bpf bpf DIR` makes it.
    let bpffs = Bpffs::with("");
    let shown = bpffs.0.path().display();
    let base = bpffs.0.path().join("opencode-egress");
    denies(&base, &format!("{shown} has mode 1777; close it: chmod 700 {shown}"));
    assert!(!base.exists(), "it was made all the same");
    fs::set_permissions(bpffs.0.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
    assert_eq!(lock(&base), "");
}

#[test]
fn so_is_a_directory_between() {
    let bpffs = Bpffs::mounted();
    let (between, base) = (bpffs.0.path().join("between"), bpffs.0.path().join("between/base"));
    fs::create_dir_all(&base).expect("directories");
    for mode in [0o720, 0o702, 0o1777] {
        fs::set_permissions(&between, fs::Permissions::from_mode(mode)).expect("chmod");
        denies(&base, &format!("has mode {mode:o}; close it: chmod 700 {}", between.display()));
    }
    fs::set_permissions(&between, fs::Permissions::from_mode(0o755)).expect("chmod");
    assert_eq!(lock(&base), "");
    chown(&between, NOBODY, None).expect("chown");
    denies(
        &base,
        &format!("{} is user 65534's; find out what made it, then: chown root:root", between.display()),
    );
}

#[test]
fn a_symbolic_link_is_no_directory() {
    let bpffs = Bpffs::mounted();
    let (base, link) = (bpffs.0.path().join("base"), bpffs.0.path().join("link"));
    fs::create_dir(&base).expect("a directory");
    symlink(&base, &link).expect("a link");
    denies(&link, &format!("{} is a symbolic link", link.display()));
    denies(&link.join("below"), &format!("{} is a symbolic link", link.display()));
}

/// Before the directory was closed, somebody may have made one that the daemon would pin into.
#[test]
fn what_another_user_made_there_is_refused() {
    let bpffs = Bpffs::mounted();
    let base = bpffs.0.path().join("base");
    let planted = base.join("v1/links/opencode-a,service/77");
    fs::create_dir_all(&planted).expect("directories");
    assert_eq!(lock(&base), "");
    chown(&planted, NOBODY, None).expect("chown");
    let expect = format!("{} is user 65534's; find out what made it, then: rm -r", planted.display());
    denies(&base, &expect);
}

#[test]
fn another_file_system_is_refused_with_the_way_to_mount_one() {
    let directory = tempfile::TempDir::new().expect("a directory");
    let error =
        Pins::below(&directory.path().join("base")).and_then(|pins| pins.lock()).expect_err("no bpffs");
    let why = format!("{:#}", anyhow::Error::from(error));
    assert!(why.ends_with("mount one: mount -t bpf -o mode=700 bpf /sys/fs/bpf"), "{why}");
}
