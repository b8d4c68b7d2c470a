//! A server for names, over UDP and TCP. Every name exists. What it has is in its first label: `v4-c000020a` has 192.0.2.10 and nothing else,
//! `v6-` and 32 digits an address of the other kind; `provider` has addresses of its own; one that begins with `slow` is answered late; all
//! others have [`V4`] and [`V6`].

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
const LATE: Duration = Duration::from_millis(700);
/// RFC 1035, 4.1.1: a response, recursion desired and available.
const FLAGS: u16 = 0x8180;
const HEADER: usize = 12;

/// Serves at an address from now on.
pub(super) fn serve(address: IpAddr) -> Result<()> {
    let datagrams = Arc::new(UdpSocket::bind((address, PORT))?);
    let connections = TcpListener::bind((address, PORT))?;
    spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            let (question, socket) = (buffer[..length].to_vec(), Arc::clone(&datagrams));
            // A thread each: some are answered late.
            spawn(move || answer(&question).map(|answer| socket.send_to(&answer, from)));
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
        let answer = answer(&question).context("no question")?;
        let length = u16::try_from(answer.len())?.to_be_bytes();
        stream.write_all(&[&length, &answer[..]].concat())?;
    }
}

/// The answer to a question; `None`: it is none.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
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
    let address = match (kind, label.split_once('-')) {
        ([0, 1], Some(("v4", digits))) => Some(u32::from_str_radix(digits, 16).ok()?.to_be_bytes().to_vec()),
        ([0, 28], Some(("v6", digits))) => {
            Some(u128::from_str_radix(digits, 16).ok()?.to_be_bytes().to_vec())
        }
        (_, Some(("v4" | "v6", _))) => None,
        ([0, 1], _) if label == "provider" => Some(PROVIDER_V4.octets().to_vec()),
        ([0, 28], _) if label == "provider" => Some(PROVIDER_V6.octets().to_vec()),
        ([0, 1], _) => Some(V4.octets().to_vec()),
        ([0, 28], _) => Some(V6.octets().to_vec()),
        _ => None,
    };
    let mut answer = question.get(..2)?.to_vec();
    let counts = [FLAGS, 1, u16::from(address.is_some()), 0, 0];
    answer.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    answer.extend(asked);
    if let Some(address) = address {
        // The name is the one that was asked for (4.1.4).
        answer.extend([0xc0, u8::try_from(HEADER).ok()?]);
        answer.extend([kind, &[0, 1], &TIME_TO_LIVE.to_be_bytes()].concat());
        answer.extend(u16::try_from(address.len()).ok()?.to_be_bytes());
        answer.extend(address);
    }
    Some(answer)
}
