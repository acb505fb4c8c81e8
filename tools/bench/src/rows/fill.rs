//! Map and unmap: 262,144 pages at once.

use crate::comparison::{Comparison, Contender, Row, Target, time};
use crate::peer;
use crate::scene::{BLOCK, GIB, PAGES, Scene, mapping, range};
use types::Height;

/// Into an empty space, and into tables that are there and empty.
pub fn map() -> Vec<Comparison> {
    vec![map_into_nothing(), map_into_tables()]
}

fn map_into_nothing() -> Comparison {
    let ours = Scene::new();
    let contenders = vec![
        Contender::new("map/empty/ours", PAGES, move || {
            let took = time(|| ours.map(mapping(0, 0, GIB, Height::PAGE)));
            ours.unmap(0, range(0, GIB));
            took
        }),
        Contender::new("map/empty/peer", PAGES, || {
            let mut peer = peer::Space::new();
            time(|| peer.map(0, 0, GIB))
        }),
    ];
    Comparison::new(contenders, |ns| {
        vec![Row::ns("map 1 GiB of 4K, empty space / peer", ns[0], ns[1], Target::AtMost(0.2))]
    })
}

/// Unmaps so that no table is covered whole, and all stay.
fn empty_tables(ours: &Scene) {
    for half in (0..GIB).step_by(BLOCK as usize / 2) {
        ours.unmap(0, range(half, BLOCK / 2));
    }
}

fn map_into_tables() -> Comparison {
    let ours = Scene::new();
    ours.map(mapping(0, 0, GIB, Height::PAGE));
    empty_tables(&ours);
    assert!(ours.tree.census().tables >= GIB / BLOCK, "the tables are there");
    let mut peer = peer::Space::new();
    peer.map(0, 0, GIB);
    peer.unmap(0, GIB);
    let contenders = vec![
        Contender::new("map/tables/ours", PAGES, move || {
            let took = time(|| ours.map(mapping(0, 0, GIB, Height::PAGE)));
            empty_tables(&ours);
            took
        }),
        Contender::new("map/tables/peer", PAGES, move || {
            let took = time(|| peer.map(0, 0, GIB));
            peer.unmap(0, GIB);
            took
        }),
    ];
    Comparison::new(contenders, |ns| {
        vec![Row::ns("map 1 GiB of 4K, existing tables / peer", ns[0], ns[1], Target::AtMost(1.2))]
    })
}

/// All of it; ours gives the tables back, the peer keeps them.
pub fn unmap() -> Vec<Comparison> {
    let ours = Scene::new();
    let in_halves = Scene::new();
    let mut peer = peer::Space::new();
    let contenders = vec![
        Contender::new("unmap/ours", PAGES, move || {
            ours.map(mapping(0, 0, GIB, Height::PAGE));
            time(|| ours.unmap(0, range(0, GIB)))
        }),
        Contender::new("unmap/peer", PAGES, move || {
            peer.map(0, 0, GIB);
            time(|| peer.unmap(0, GIB))
        }),
        Contender::new("unmap/ours, tables kept", PAGES, move || {
            in_halves.map(mapping(0, 0, GIB, Height::PAGE));
            time(|| empty_tables(&in_halves))
        }),
    ];
    vec![Comparison::new(contenders, |ns| {
        vec![
            Row::ns("unmap 1 GiB of 4K / peer", ns[0], ns[1], Target::AtMost(0.5)),
            Row::ns("unmap 1 GiB of 4K by halves of tables / peer", ns[2], ns[1], Target::None),
        ]
    })]
}
