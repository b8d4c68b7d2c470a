//! Who answers: the resolver, two others, and the server that all of them ask. Whatever they start runs on the CPU of whoever starts it.

use std::{
    env,
    io::{BufRead as _, BufReader, IoSlice, Write as _},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    process::Command,
    str::FromStr as _,
    thread,
};

use anyhow::{Context as _, Result};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, rdata::A},
};
use opencode_egress::{
    command::resolve::start,
    control::learned::{FromResolver, ToResolver},
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::{FRESH, NAME, Subject};

/// Runs systemd-resolved with a `/run` of its own, where its configuration is and where it writes; nothing of the machine is changed. Not
/// as root, for then it looks for a user of its own. It drops capabilities, which takes one.
const RUN_RESOLVED: &str = r#"
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/tree /run/systemd/resolve /run/systemd/resolved.conf.d /run/systemd/netif/links
mount --bind "$1" /run/tree
chown nobody /run/systemd/resolve
echo "$3" > /run/systemd/resolved.conf.d/bench.conf
export SYSTEMD_LOG_LEVEL=err LD_LIBRARY_PATH="/run/tree/$2"
for directory in /run/tree/usr/lib /run/tree/lib; do
    program="$directory/systemd/systemd-resolved"
    if [ -x "$program" ]; then
        exec setpriv --reuid nobody --regid nogroup --clear-groups --inh-caps +setpcap --ambient-caps +setpcap "$program"
    fi
done
echo "there is no systemd-resolved in $1; unpack systemd-resolved and libsystemd-shared, and name the directory by --resolved" >&2
exit 1
"#;

/// A server that has one address for every name.
pub(crate) fn upstream() -> Result<SocketAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = socket.local_addr()?;
    let fresh = Name::from_str(FRESH)?.append_domain(&Name::root())?;
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer)?;
            let mut message = Message::from_vec(&buffer[..length])?.into_response();
            message.metadata.response_code = ResponseCode::NoError;
            message.metadata.recursion_available = true;
            let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
            let name = message.queries.first().context("no question")?.name.clone();
            let ttl = if name == fresh { 0 } else { 3600 };
            message.answers.push(Record::from_rdata(name, ttl, data));
            socket.send_to(&message.to_vec()?, from)?;
        }
        #[expect(unreachable_code, reason = "the type of the errors above")]
        anyhow::Ok(())
    });
    Ok(address)
}

pub(crate) fn ours(upstream: SocketAddr) -> Result<Subject> {
    let (process, daemon) = start(Path::new(env!("CARGO_BIN_EXE_opencode-egress")))?;
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = udp.local_addr()?;
    let tcp = TcpListener::bind(address)?;
    let names = [NAME, FRESH].map(str::to_owned).to_vec();
    let instance = ToResolver::Instance { number: 1, names, leased: vec![], audit: false, audit_until: None };
    let line = serde_json::to_string(&instance)? + "\n";
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [udp.as_fd(), tcp.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(&daemon, &[IoSlice::new(line.as_bytes())], &mut control, SendFlags::empty())?;
    say(&daemon, &ToResolver::Upstream { servers: vec![upstream] })?;
    thread::spawn(move || learn(&daemon));
    Ok(Subject::new("opencode-egress", address, Some(process)))
}

/// Has every address learned at once.
fn learn(daemon: &UnixStream) -> Result<()> {
    for line in BufReader::new(daemon).lines() {
        if let FromResolver::Learn { id, addresses, .. } = serde_json::from_str(&line?)? {
            say(daemon, &ToResolver::Learned { id, addresses })?;
        }
    }
    Ok(())
}

fn say(mut daemon: &UnixStream, message: &ToResolver) -> Result<()> {
    Ok(daemon.write_all((serde_json::to_string(message)? + "\n").as_bytes())?)
}

pub(crate) fn dnsmasq(upstream: SocketAddr) -> Result<Subject> {
    let address = free()?;
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--bind-interfaces", "--no-resolv"]);
    command.args(["--no-hosts", "--user=root", "--pid-file", "--log-facility=/dev/null"]);
    command.arg(format!("--listen-address={}", IpAddr::from(Ipv4Addr::LOCALHOST)));
    command.arg(format!("--port={}", address.port()));
    command.arg(format!("--server={}#{}", upstream.ip(), upstream.port()));
    let process = command.spawn().context("cannot run dnsmasq; apt-get install dnsmasq-base")?;
    Ok(Subject::new("dnsmasq", address, Some(process)))
}

/// systemd-resolved of this tree, with a cache, and without what the others do not do.
pub(crate) fn resolved(upstream: SocketAddr, tree: &Path) -> Result<Subject> {
    let address = free()?;
    let configuration = format!(
        "[Resolve]\nDNS={upstream}\nDomains=~.\nDNSStubListener=no\nDNSStubListenerExtra={address}\nCache=yes\n\
         CacheFromLocalhost=yes\nDNSSEC=no\nDNSOverTLS=no\nLLMNR=no\nMulticastDNS=no\nReadEtcHosts=no"
    );
    let libraries = format!("usr/lib/{}-linux-gnu/systemd", env::consts::ARCH);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", RUN_RESOLVED, "sh"]).arg(tree).args([libraries, configuration]);
    let process = command.spawn().context("cannot run unshare")?;
    Ok(Subject::new("systemd-resolved", address, Some(process)))
}

/// An address that is free until this moment.
fn free() -> Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
