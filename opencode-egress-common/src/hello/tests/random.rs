//! What holds for any bytes, and for any hellos.

use proptest::prelude::*;

use super::*;

proptest! {
    /// No bytes make it panic, wherever they are cut, and what a hello has is not changed by how it is cut.
    #[test]
    fn any_bytes_are_followed(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 1..40_usize) {
        let _ = follow([&bytes[..]]);
        let _ = follow(bytes.chunks(cut));
        // Behind a good beginning.
        let good = hello(&[filler(), sni("registry.example.org"), filler()]);
        for length in [5, 9, 43, 80, 100, 200, good.len()] {
            let stream = [&good[..length.min(good.len())], &bytes].concat();
            let whole = follow([&stream[..]]);
            let pieces = follow(stream.chunks(cut));
            // In pieces a second hello may come, which may not with the first.
            if whole != NotTls {
                prop_assert_eq!(pieces, whole);
            }
        }
    }

    /// Extensions that say another length than they have are the same to a reader that has them all at once as to one that gets them
    /// byte by byte.
    #[test]
    fn extensions_are_bounded(
        lengths in proptest::collection::vec((0..16_usize, 0..4_usize), 1..12),
        place in any::<prop::sample::Index>(),
        cut in 0..8_usize,
    ) {
        let mut extensions: Vec<_> = lengths
            .iter()
            .map(|(length, more)| {
                let mut bytes = extension(0x5a5a, &vec![0; *length]);
                // One in four says that it has one more or less.
                bytes[3] = bytes[3].wrapping_add([0, 0, 1, 0xff][*more]);
                bytes
            })
            .collect();
        extensions.insert(place.index(extensions.len() + 1), sni("registry.example.org"));
        let last = extensions.last_mut().expect("there is one");
        last.truncate(last.len().saturating_sub(cut.saturating_sub(3)));
        let stream = hello(&extensions);
        prop_assert_eq!(follow([&stream[..]]), follow(stream.chunks(1)));
    }

    /// A hello with any extensions in any order is what its name is, however its message is cut into records and these into pieces.
    #[test]
    fn hellos_are_followed(
        kinds in proptest::collection::vec((1..60_000_u16, 0..200_usize), 0..25),
        place in any::<prop::sample::Index>(),
        name in prop::sample::select(vec!["registry.example.org", "evil.example", "A.example", "x.below.example.net"]),
        in_record in 20..3000_usize,
        in_piece in 1..3000_usize,
    ) {
        let mut extensions: Vec<_> = kinds.iter().map(|(kind, length)| extension(*kind, &vec![3; *length])).collect();
        extensions.insert(place.index(extensions.len() + 1), sni(name));
        let message = message(&body(&extensions));
        let stream: Vec<u8> = message.chunks(in_record).flat_map(|part| record(22, part)).collect();
        let expected = if name == "evil.example" { other(name) } else { Open };
        if stream.len() / in_record < 10 {
            prop_assert_eq!(follow([&stream[..]]), expected.clone());
        }
        prop_assert_eq!(follow(stream.chunks(in_piece.min(500))), expected);
    }

    /// Bytes before the extensions that say something else are the same to a reader that has all of them at once as to one that gets them byte by
    /// byte.
    #[test]
    fn beginnings_are_bounded(
        session in 0..34_usize,
        suites in 0..40_usize,
        compression in 0..4_usize,
        wrong in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(1), Just(255), any::<u8>()]), 0..3),
        cut in 0..8_usize,
    ) {
        let block = |length: usize| vec![1; length];
        let extensions = [sni("registry.example.org"), filler()].concat();
        let length = |length: usize| u16::try_from(length).expect("a short one").to_be_bytes();
        let mut body = [&[3, 1][..], &[7; 32], &[length(session)[1]], &block(session)].concat();
        body.extend([&length(suites)[..], &block(suites), &[length(compression)[1]], &block(compression)].concat());
        let before = body.len() + 2;
        body.extend([&length(extensions.len())[..], &extensions].concat());
        for (place, more) in wrong {
            let place = place.index(before);
            body[place] = body[place].wrapping_add(more);
        }
        body.truncate(body.len() - cut.saturating_sub(4));
        let stream = record(22, &message(&body));
        prop_assert_eq!(follow([&stream[..]]), follow(stream.chunks(1)));
    }
}
