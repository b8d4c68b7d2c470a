use super::*;

/// A size that is the sum of the fields' sizes has no padding.
#[test]
fn layouts_have_no_padding() {
    assert_eq!(size_of::<TrieKey>(), 4 + 4 + 16);
    assert_eq!(size_of::<Entry>(), 8);
    assert_eq!(size_of::<Listener>(), 16 + 2 + 2 + 4);
    assert_eq!(size_of::<PolicyHeader>(), 44 + MAX_LISTENERS * size_of::<Listener>() + 12);
    assert_eq!(size_of::<ConfinedCgroup>(), 16 + CACHE_SLOTS * 8);
    assert_eq!(size_of::<SocketCount>(), 8);
    assert_eq!(size_of::<CountedSocket>(), 8);
    assert_eq!(size_of::<SocketSlot>(), 16);
    assert_eq!(size_of::<Counter>(), 16);
    assert_eq!(size_of::<Denied>(), REASON_SLOTS * 16 + 7 * 8);
}

#[test]
fn a_scope_fits_a_page() {
    assert!(size_of::<ConfinedCgroup>() <= 4096);
}

#[test]
fn the_current_word_holds_both_halves() {
    let current = Current::new(7, 4095);
    assert_eq!((current.generation(), current.slot(), current.has_names()), (7, 4095, false));
    let named = current.with_names(true);
    assert_eq!((named.generation(), named.slot(), named.has_names()), (7, 4095, true));
    assert_eq!(named.with_names(false), current);
    assert_eq!(Current::default().slot(), 0);
}
