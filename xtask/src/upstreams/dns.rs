//! A server for names, over UDP and TCP. Every name exists. What it has is in its first label: `v4-c000020a` has 192.0.2.10 and nothing else,
//! `v6-` and 32 digits an address of the other kind, `v6many-` [`MANY`] from that one on, `v6zero-` that one for no time at all, `v6second-` for a second, `v6alias-` the name of a name that has it;
//! `provider` has addresses of its own; one that begins with `slow` is answered late; all others have [`V4`] and [`V6`].

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread::{sleep, spawn},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Where it is, of the second host's addresses.
pub(super) const SERVES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 30)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x30))];
const PORT: u16 = 53;
const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x20);
const PROVIDER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 40);
const PROVIDER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x40);
/// In seconds.
const TIME_TO_LIVE: u32 = 1;
/// So many addresses have no room in a datagram.
const MANY: u128 = 200;
/// What there is room for.
const LONGEST_DATAGRAM: usize = 1232;
const LATE: Duration = Duration::from_millis(700);
/// RFC 1035, 4.1.1: a response, recursion desired and available.
const FLAGS: u16 = 0x8180;
/// The rest is to be had by TCP.
const TRUNCATED: u16 = 0x0200;
const HEADER: usize = 12;
/// A type of record.
const CNAME: [u8; 2] = [0, 5];

/// Serves at an address from now on.
pub(super) fn serve(address: IpAddr) -> Result<()> {
    let datagrams = Arc::new(UdpSocket::bind((address, PORT))?);
    let connections = TcpListener::bind((address, PORT))?;
    spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            let (question, socket) = (buffer[..length].to_vec(), Arc::clone(&datagrams));
            // A thread each: some are answered late.
            spawn(move || answer(&question, LONGEST_DATAGRAM).map(|answer| socket.send_to(&answer, from)));
        }
    });
    spawn(move || connections.incoming().flatten().for_each(|stream| drop(spawn(|| converse(stream)))));
    Ok(())
}

fn converse(mut stream: TcpStream) -> Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut question)?;
        let answer = answer(&question, usize::MAX).context("no question")?;
        let length = u16::try_from(answer.len())?.to_be_bytes();
        stream.write_all(&[&length, &answer[..]].concat())?;
    }
}

/// The answer to a question, at most so long; `None`: it is none.
fn answer(question: &[u8], longest: usize) -> Option<Vec<u8>> {
    let mut end = HEADER;
    while let length @ 1.. = usize::from(*question.get(end)?) {
        end += 1 + length;
    }
    // The last label, the type, the class.
    let asked = question.get(HEADER..end + 5)?;
    let label = str::from_utf8(asked.get(1..)?.get(..usize::from(*asked.first()?))?).ok()?;
    if label.starts_with("slow") {
        sleep(LATE);
    }
    let kind = question.get(end + 1..end + 3)?;
    let v6 = |digits| u128::from_str_radix(digits, 16).ok();
    // The name is the one that was asked for (4.1.4).
    let asked_for = [0xc0, u8::try_from(HEADER).ok()?];
    let record = |name: &[u8], kind: &[u8], ttl: u32, data: &[u8]| {
        let length = u16::try_from(data.len()).unwrap_or_default().to_be_bytes();
        [name, kind, &[0, 1], &ttl.to_be_bytes(), &length, data].concat()
    };
    let one = |ttl: u32, data: &[u8]| vec![record(&asked_for, kind, ttl, data)];
    let records = match (kind, label.split_once('-')) {
        ([0, 1], Some(("v4", digits))) => {
            one(TIME_TO_LIVE, &u32::from_str_radix(digits, 16).ok()?.to_be_bytes())
        }
        ([0, 28], Some(("v6", digits))) => one(TIME_TO_LIVE, &v6(digits)?.to_be_bytes()),
        ([0, 28], Some(("v6zero", digits))) => one(0, &v6(digits)?.to_be_bytes()),
        ([0, 28], Some(("v6second", digits))) => one(1, &v6(digits)?.to_be_bytes()),
        ([0, 28], Some(("v6many", digits))) => {
            let first = v6(digits)?;
            (first..first + MANY).flat_map(|address| one(TIME_TO_LIVE, &address.to_be_bytes())).collect()
        }
        ([0, 28], Some(("v6alias", digits))) => {
            let alias = b"\x05alias\x07example\x00";
            let address = v6(digits)?.to_be_bytes();
            vec![record(&asked_for, &CNAME, TIME_TO_LIVE, alias), record(alias, kind, TIME_TO_LIVE, &address)]
        }
        (_, Some(("v4" | "v6" | "v6zero" | "v6second" | "v6many" | "v6alias", _))) => vec![],
        ([0, 1], _) if label == "provider" => one(TIME_TO_LIVE, &PROVIDER_V4.octets()),
        ([0, 28], _) if label == "provider" => one(TIME_TO_LIVE, &PROVIDER_V6.octets()),
        ([0, 1], _) => one(TIME_TO_LIVE, &V4.octets()),
        ([0, 28], _) => one(TIME_TO_LIVE, &V6.octets()),
        _ => vec![],
    };
    let whole = [asked.to_vec(), records.concat()].concat();
    let cut = HEADER + whole.len() > longest;
    let (flags, count) = if cut { (FLAGS | TRUNCATED, 0) } else { (FLAGS, records.len()) };
    let counts = [flags, 1, u16::try_from(count).ok()?, 0, 0].map(u16::to_be_bytes).concat();
    Some([question.get(..2)?, &counts, if cut { asked } else { &whole }].concat())
}
