//! The laws of [`Format`], as one check for any implementation.

use stage2::{Attrs, Bbm, Entry, Format, Leaf, Live, Marks, Note, Rewrite, Table, Why, span};
use types::{Access, Height, Pa};

/// What entries are made of, drawn at random: any values do.
#[derive(Clone, Copy, Debug)]
pub struct Drawn {
    /// Gives addresses, cut to size and aligned.
    pub pa: u64,
    /// Gives the height, modulo those that the format has.
    pub height: u8,
    /// The attributes of a leaf.
    pub attrs: Attrs,
    /// The reason of a link.
    pub why: u8,
    /// The payload of a note.
    pub payload: u32,
}

/// Checks every law on the entries of each kind that `drawn` gives.
///
/// # Panics
/// Where a law does not hold.
pub fn check_drawn<F: Format>(format: F, drawn: Drawn) {
    let height = Height::new(drawn.height % (F::MAX_TOP + 1));
    let aligned = |size: u64| Pa::new(drawn.pa & ((1 << F::OUTPUT_BITS) - 1) & !(size - 1));
    for entry in [Entry::Absent, Entry::Frozen, Entry::Dead, Entry::Note(Note::new(drawn.payload))] {
        check(format, entry, height);
    }
    if height <= format.largest_leaf() {
        let leaf = Leaf { pa: aligned(span::<F>(height)), attrs: drawn.attrs };
        check(format, Entry::Leaf(leaf), height);
        check(format, Entry::Held(Live::Leaf(leaf)), height);
        for bbm in (0..4).map(Bbm::from_number) {
            check_rewrites(format, leaf, height, bbm);
        }
    }
    if height > Height::PAGE {
        let pending = drawn.attrs.marks.contains(Marks::PENDING);
        let pa = aligned(span::<F>(Height::PAGE));
        let table = Table { pa, pending, why: Why::from_number(drawn.why) };
        check(format, Entry::Table(table), height);
        check(format, Entry::Held(Live::Table(table)), height);
    }
}

/// Checks every law that can be checked on one entry at one height. The entry is possible there.
///
/// # Panics
/// Where a law does not hold.
pub fn check<F: Format>(format: F, entry: Entry, height: Height) {
    let canonical = format.canonical(entry, height);
    assert_eq!(format.canonical(canonical, height), canonical, "canonical is idempotent");
    let raw = format.encode(entry, height);
    assert_eq!(format.decode(raw, height), canonical, "decode undoes encode: {raw:#x} at {height:?}");
    assert_eq!(format.encode(canonical, height), raw, "canonical entries have one encoding");
    assert_eq!(format.decode(0, height), Entry::Absent, "a zeroed page is an empty table");
    assert_eq!(raw == 0, entry == Entry::Absent, "nothing else is zero");

    let live = canonical.live();
    let pending = match live {
        Some(Live::Leaf(leaf)) => leaf.attrs.marks.contains(Marks::PENDING),
        Some(Live::Table(table)) => table.pending,
        None => false,
    };
    assert_eq!(format.is_pending(raw, height), pending, "is_pending agrees with decode: {raw:#x}");
    for access in (0..8).map(Access::from_bits_truncate) {
        let gives = match canonical {
            Entry::Leaf(leaf) => {
                leaf.attrs.owner == stage2::Owner::Space && leaf.attrs.access.contains(access)
            }
            _ => false,
        };
        assert_eq!(format.gives(raw, height, access), gives, "gives agrees with decode: {raw:#x}");
    }
    let output = if let Some(Live::Leaf(leaf)) = live { Some(leaf.pa) } else { None };
    assert_eq!(F::output(raw, height), output, "output agrees with decode: {raw:#x} at {height:?}");
    if height > Height::PAGE {
        let child = if let Some(Live::Table(table)) = live { Some(table.pa) } else { None };
        assert_eq!(F::child(raw), child, "child agrees with decode: {raw:#x} at {height:?}");
    }
    match (entry.live(), live) {
        (Some(Live::Leaf(asked)), Some(Live::Leaf(leaf))) => {
            check_expressed(asked, leaf);
            check_leaf(format, leaf, raw, height);
        }
        (_, Some(Live::Table(_))) => {
            let settled = format.settled(raw, height);
            assert_eq!(format.settled(settled, height), settled, "settled is idempotent");
            assert_eq!(format.decode(settled, height), canonical, "a link has no flags but the accessed one");
        }
        _ => assert_eq!(format.settled(raw, height), raw, "hardware sets flags in live entries only"),
    }
}

/// What a format cannot express it may lose; but it never gives a right that was not asked for.
fn check_expressed(asked: Leaf, leaf: Leaf) {
    let same = |attrs: Attrs| (attrs.memory, attrs.owner);
    assert_eq!(
        (leaf.pa, same(leaf.attrs)),
        (asked.pa, same(asked.attrs)),
        "address, type and owner are kept"
    );
    assert!(asked.attrs.access.contains(leaf.attrs.access), "{:?} from {:?}", leaf.attrs, asked.attrs);
    let lost = asked.attrs.marks - leaf.attrs.marks;
    assert!(!lost.intersects(Marks::YOUNG | Marks::PENDING), "{lost:?} lost");
}

fn check_leaf<F: Format>(format: F, leaf: Leaf, raw: u64, height: Height) {
    // Another address, all its bits different from this one's.
    let mask = ((1 << F::OUTPUT_BITS) - 1) & !(span::<F>(height) - 1);
    let other = Pa::new(!leaf.pa.get() & mask);
    let moved = F::with_output(raw, height, other);
    assert_eq!(F::output(moved, height), Some(other), "with_output sets the address");
    assert_eq!(F::with_output(moved, height, leaf.pa), raw, "with_output changes nothing else");
    for (raw, pa) in [(raw, leaf.pa), (moved, other)] {
        let next = pa.wrapping_add(span::<F>(height));
        if next.get() <= mask {
            assert_eq!(
                F::next_output(raw, height),
                F::with_output(raw, height, next),
                "what follows {raw:#x}"
            );
        }
    }

    let settled = format.settled(raw, height);
    assert_eq!(format.settled(settled, height), settled, "settled is idempotent");
    let young = Leaf { attrs: leaf.attrs.with(Marks::YOUNG), ..leaf };
    let raw_young = format.encode(Entry::Leaf(young), height);
    if F::output(raw, height).is_some() && !matches!(format.decode(raw, height), Entry::Held(_)) {
        assert_eq!(format.settled(raw_young, height), settled, "the accessed flag is hardware's");
    }
}

/// Checks the rules of live rewriting that hold for every format. What is judged is what is stored: the canonical entry.
///
/// # Panics
/// Where one does not.
pub fn check_rewrites<F: Format>(format: F, leaf: Leaf, height: Height, bbm: Bbm) {
    let stored = |leaf: Leaf| match format.canonical(Entry::Leaf(leaf), height) {
        Entry::Leaf(leaf) => leaf,
        other => panic!("{leaf:?} became {other:?}"),
    };
    let leaf = stored(leaf);
    let is = |to: Leaf| format.rewrite(Entry::Leaf(leaf), Entry::Leaf(to), height, bbm);
    let attrs = leaf.attrs;
    assert_eq!(is(leaf), Rewrite::InPlace, "no change");
    let moved = Leaf { pa: Pa::new(leaf.pa.get() ^ span::<F>(height)), ..leaf };
    assert_eq!(is(moved), Rewrite::BreakBeforeMake, "another address");
    for access in (0..8).map(Access::from_bits_truncate) {
        let to = stored(Leaf { attrs: attrs.with_access(access), ..leaf });
        let flags_taken = attrs.marks.contains(Marks::DIRTY) && !to.attrs.marks.contains(Marks::DIRTY);
        let is_less = flags_taken || !to.attrs.access.contains(attrs.access);
        let want = if is_less { Rewrite::InPlaceThenInvalidate } else { Rewrite::InPlace };
        assert_eq!(is(to), want, "rights from {:?} to {:?}", attrs.access, to.attrs.access);
    }
    if attrs.marks.contains(Marks::YOUNG) {
        let old = Leaf { attrs: attrs.without(Marks::YOUNG), ..leaf };
        assert_eq!(is(old), Rewrite::InPlaceThenInvalidate, "the accessed flag cleared");
    }
    for absent in [Entry::Absent, Entry::Frozen, Entry::Dead, Entry::Note(Note::new(1))] {
        let broken = format.rewrite(Entry::Leaf(leaf), absent, height, bbm);
        assert_eq!(broken, Rewrite::InPlaceThenInvalidate, "a break");
        assert_eq!(format.rewrite(absent, Entry::Leaf(leaf), height, bbm), Rewrite::InPlace, "a make");
    }
    if height > Height::PAGE {
        let table = Table { pa: Pa::new(0), pending: true, why: Why::Alignment };
        let split = format.rewrite(Entry::Leaf(leaf), Entry::Table(table), height, bbm);
        if bbm >= Bbm::Level2 {
            assert_eq!(split, Rewrite::InPlaceThenInvalidate, "a change of size, directly");
        }
        let other = Table { pa: Pa::new(span::<F>(Height::PAGE)), ..table };
        let turned = format.rewrite(Entry::Table(table), Entry::Table(other), height, bbm);
        assert_eq!(turned, Rewrite::BreakBeforeMake, "a link to another table");
    }
}
