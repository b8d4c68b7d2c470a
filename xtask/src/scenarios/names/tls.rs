//! TLS: at the address of a listed name, which others share, a connection lives for the names that are listed.

use anyhow::{Context as _, Result, ensure};

use super::{
    super::{Scenario, Tell},
    units::{ADDRESS, Units},
};
use crate::{
    machine::{Machine, wait},
    process::apt_install,
};

/// What only real programs show.
pub(in crate::scenarios) const TLS: &[Scenario] = &[Scenario {
    title: "names: what opens TLS reaches the listed name, and no other at its address, until that is granted",
    run: tls,
}];

/// A server on the second host that is every name's, for a minute. It answers a request.
const SERVE: &str = "exec > /dev/null 2>&1; (
    place=$(mktemp -d); trap 'rm -r \"$place\"' EXIT; cd \"$place\"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=far -days 1 -keyout key -out certificate
    timeout 60 openssl s_server -www -accept 192.0.2.20:443 -key key -cert certificate
) &";

/// Asks a server of the address of `api.example.org`, in the hello, for this name.
fn get(name: &str) -> String {
    format!("curl -sSk -m 5 -o page --connect-to {name}:443:api.example.org:443 https://{name}/")
}

fn tls(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    // What the caller of a connection gets that the daemon ends: ECONNABORTED.
    const ENDED: &str = "Software caused connection abort";
    apt_install("a server for TLS", &["openssl"])?;
    machine.host(&["sh", "-c", SERVE])?;
    let answers = || {
        let said = machine.host(&["openssl", "s_client", "-connect", "192.0.2.20:443"]).ok()?;
        said.contains("CN = far").then_some(())
    };
    wait("the server", answers)?;
    let units = Units::start(machine)?;
    units.apply(|instances| instances["n"]["allow"] = serde_json::json!(["api.example.org:443"]))?;
    let line = |reason: &str, name: &str| {
        units.line("n", &[&format!("dst={ADDRESS} dport=443 "), &format!("reason={reason}"), name])
    };
    units.can("n", &get("api.example.org"))?;
    units.cannot("n", &get("off.example"), ENDED)?;
    line("tls-name-not-allowed", "name=off.example")?;
    units.cannot("n", "openssl s_client -noservername -connect api.example.org:443", "errno=103")?;
    units.cannot("n", "curl -sS -m 5 http://api.example.org:443/", ENDED)?;
    line("not-tls", "name=api.example.org")?;
    let quic = "python3 -c 'import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(bytes(1200), (\"api.example.org\", 443))'";
    units.cannot("n", quic, "Operation not permitted")?;

    let egress = |words: &[&str]| units.machine.succeed(&[&["opencode-egress"], words].concat());
    let suggested = egress(&["suggest", "n"])?;
    ensure!(suggested.contains("\"off.example\""), "{suggested}");
    egress(&["allow", "n", "off.example:443", "--for", "1h"])?;
    // Its address is known when it was asked for.
    units.can("n", "getent ahostsv4 off.example")?;
    units.can("n", &get("off.example"))?;
    egress(&["revoke", "n", "off.example:443"])?;
    units.cannot("n", &get("off.example"), ENDED)?;
    units.can("n", &get("api.example.org")).context("after all of it").map(drop)
}
