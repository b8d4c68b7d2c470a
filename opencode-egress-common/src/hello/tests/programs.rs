//! Hellos of real programs: followed as they are, and compared with rustls when something in them is changed.

use super::*;

/// Each with its own extensions, in its own order; wherever it is cut.
#[test]
fn hellos_of_real_programs_are_followed() {
    let listed = |name: &ServerName| ServerNameKey::exact(real::NAME).covers(&name.to_key());
    for (program, bytes) in real::hellos() {
        let follow = |pieces: &[&[u8]], listed: &dyn Fn(&ServerName) -> bool| {
            let hello = Hello::default();
            hello.begin(false);
            let mut judged = pieces.iter().map(|piece| {
                hello.come(0, u32::try_from(piece.len()).expect("a short one"));
                judge(&hello, &Slice(piece), listed)
            });
            judged.find(|judged| *judged != Followed::Passes).unwrap_or(Followed::Passes)
        };
        for cut in 0..=bytes.len() {
            let (one, two) = bytes.split_at(cut);
            assert_eq!(follow(&[one, two], &listed), Followed::Passes, "{program} at {cut}");
            assert_eq!(follow(&[one, two], &|_| false), Followed::OtherName, "{program} at {cut}");
        }
        let ours = compared::Ours::Passes { name: Some(real::NAME.to_string()), followed_on: true };
        assert_eq!(compared::ours(&bytes), ours, "{program}");
        let theirs = compared::theirs(&bytes);
        assert_eq!(theirs, compared::Theirs::Hello(Some(real::NAME.to_string())), "{program}");
    }
}

/// How many mutated hellos are compared, unless `OPENCODE_EGRESS_HELLOS` says so.
const COMPARED: u32 = 20_000;

/// Real hellos, with bytes changed, cut out, put in and moved, here and there.
#[test]
fn mutated_hellos_are_what_rustls_takes_them_for() {
    let count = std::env::var("OPENCODE_EGRESS_HELLOS").ok().and_then(|count| count.parse().ok());
    let hellos = real::hellos();
    // xorshift64, <https://www.jstatsoft.org/article/view/v008i14>: the same hellos at each run.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).expect("a small number")
    };
    let (mut same, mut changed) = (0, 0);
    for _ in 0..count.unwrap_or(COMPARED) {
        let (_, mut bytes) = hellos[random(hellos.len())].clone();
        // The lengths of what a change makes longer or shorter are mended half of the time.
        let mended = random(2) == 0;
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            let length = 1 + random(8.min(bytes.len() - at));
            match random(6) {
                0 => bytes[at] = u8::try_from(random(256)).expect("a byte"),
                1 => bytes[at] ^= 1 << random(8),
                2 => drop(bytes.drain(at..at + length)),
                3 => {
                    drop(bytes.splice(
                        at..at,
                        hello(&[sni("other.example")])[43..].iter().copied().take(length * 8),
                    ))
                }
                4 => {
                    let part = bytes[at..at + length].to_vec();
                    let to = random(bytes.len());
                    drop(bytes.splice(to..to, part));
                }
                _ => bytes.truncate(at.max(1)),
            }
            if bytes.len() < 12 {
                break;
            }
        }
        if mended && bytes.len() > 12 {
            let body = u32::try_from(bytes.len() - 9).expect("a short one").to_be_bytes();
            let record = u16::try_from(bytes.len() - 5).expect("a short one").to_be_bytes();
            bytes[3..5].copy_from_slice(&record);
            bytes[6..9].copy_from_slice(&body[1..]);
        }
        let is_same = compared::compare(&bytes);
        same += u32::from(is_same);
        changed += u32::from(!is_same);
    }
    std::println!("the same hello to both: {same}, no hello to one of them: {changed}");
    assert!(same > 0 && changed > 0);
}
