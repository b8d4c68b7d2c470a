//! The second host's network namespace, and the cable between it and the machine.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
};

use anyhow::Result;

use super::parts::Netns;
use crate::process::checked;

/// Addresses of the machine and of the second host.
const MACHINE_ADDRESSES: [&str; 2] = ["192.0.2.1/24", "2001:db8::1/64"];
pub(super) const HOST_ADDRESSES: [&str; 8] = [
    "192.0.2.10/24",
    "192.0.2.20/24",
    "192.0.2.30/24",
    "192.0.2.40/24",
    "2001:db8::10/64",
    "2001:db8::20/64",
    "2001:db8::30/64",
    "2001:db8::40/64",
];

/// Makes the second host and the cable between it and the machine.
pub(super) fn lay(name: &str, init: u32) -> Result<Netns> {
    let ip = |words: &[&str]| {
        let mut command = Command::new("ip");
        command.args(words);
        checked(command)
    };
    let netns = Netns::add(name.to_owned())?;
    let init = init.to_string();
    ip(&["link", "add", "veth", "netns", name, "type", "veth", "peer", "name", "eth0", "netns", &init])?;
    for address in HOST_ADDRESSES {
        ip(&[&["-n", name, "addr", "add", address, "dev", "veth"][..], nodad(address)].concat())?;
    }
    ip(&["-n", name, "link", "set", "veth", "up"])?;
    ip(&["-n", name, "link", "set", "lo", "up"])?;
    Ok(netns)
}

/// Connects the machine to it.
pub(super) fn connect(init: u32) -> Result<()> {
    let inside = |words: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args(["-t", &init.to_string(), "-n", "ip"]).args(words);
        checked(command)
    };
    for address in MACHINE_ADDRESSES {
        inside(&[&["addr", "add", address, "dev", "eth0"][..], nodad(address)].concat())?;
    }
    inside(&["link", "set", "eth0", "up"])?;
    inside(&["link", "set", "lo", "up"])
}

/// An IPv6 address is usable at once without duplicate address detection.
fn nodad(address: &str) -> &'static [&'static str] {
    if address.contains(':') { &["nodad"] } else { &[] }
}

/// A command on the second host.
pub(super) fn in_netns(name: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name]).arg(program).stdin(Stdio::null());
    command
}
