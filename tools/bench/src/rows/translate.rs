//! Translate: 262,144 pages in random order, each page leading to another.

use crate::chase::{Chase, Random};
use crate::comparison::{Comparison, Contender, Row, Target, time, time_again};
use crate::peer;
use crate::scene::{GIB, PAGE, PAGES, Scene, mapping, origin, range};
use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;
use types::{Height, Ipa, Pa};

/// How many translations a pass does: each page once, on average.
const TIMES: u64 = PAGES;

/// Returns where each page leads: one circle through all pages (Sattolo's shuffle).
fn circle() -> Vec<u64> {
    let mut pages: Vec<u64> = (0..PAGES).collect();
    let mut random = Random::new(1);
    for last in (1..pages.len()).rev() {
        let other = (random.next(32) as usize * last) >> 32;
        pages.swap(last, other);
    }
    pages
}

/// Returns the address of each page, and the one that it leads to.
fn leads(circle: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    (0..).zip(circle).map(|(page, next)| (origin() + page * PAGE, origin() + next * PAGE))
}

/// Makes a space of 1 GiB whose pages lead in a circle.
fn ring(circle: &[u64]) -> Scene {
    let scene = Scene::new();
    for (ipa, pa) in leads(circle) {
        scene.map(mapping(ipa, pa, PAGE, Height::PAGE));
    }
    scene
}

/// One at a time, and many under way.
pub fn comparisons() -> Vec<Comparison> {
    let circle = circle();
    let ours = Rc::new(ring(&circle));
    let mut peer = peer::Space::new();
    peer.map_pages(leads(&circle));
    let peer = Rc::new(peer);
    // SAFETY: the scene lives in each contender that chases.
    let chase = unsafe { Chase::through(&ours) };
    assert_agree(&ours, &peer, chase);
    vec![dependent(&ours, &peer, chase), independent(&ours, &peer, chase), ascending(&ours, &peer, chase)]
}

fn assert_agree(ours: &Scene, peer: &peer::Space, chase: Chase) {
    let mut random = Random::new(2);
    for _ in 0..1000 {
        let ipa = origin() + random.next(18) * PAGE;
        let section = ours.section(0);
        let pa = ours.tree.open(&section).translate(Ipa::new(ipa)).pa(Ipa::new(ipa));
        assert_eq!(pa.map(Pa::get), Some(chase.page(ipa)));
        assert_eq!(peer.translate(ipa), Some(chase.page(ipa)));
    }
    assert_eq!(ours.sum_by_walk(range(origin(), GIB)), peer.sum_by_walk());
}

/// Follows the circle, `next` being the way from one page to the next.
#[inline(always)]
fn follow(next: impl Fn(u64) -> u64) -> Duration {
    let start = origin();
    time_again(|| {
        let mut at = start;
        for _ in 0..TIMES {
            at = next(at);
        }
        at
    })
}

/// Adds up what `translate` says for addresses at random.
#[inline(always)]
fn scatter(translate: impl Fn(u64) -> u64) -> Duration {
    let origin = origin();
    time_again(|| {
        let (mut random, mut sum) = (Random::new(3), 0u64);
        for _ in 0..TIMES {
            sum = sum.wrapping_add(translate(origin + random.next(18) * PAGE));
        }
        sum
    })
}

fn dependent(ours: &Rc<Scene>, peer: &Rc<peer::Space>, chase: Chase) -> Comparison {
    let (scene, kept, peer) = (Rc::clone(ours), Rc::clone(ours), Rc::clone(peer));
    let contenders = vec![
        Contender::new("translate/dependent/ours", TIMES, move || {
            let section = scene.section(0);
            let view = scene.tree.open(&section);
            follow(|at| {
                let ipa = Ipa::new(at);
                view.translate(ipa).pa(ipa).map_or(0, Pa::get)
            })
        }),
        Contender::new("translate/dependent/chase", TIMES, move || {
            black_box(&kept);
            follow(|at| chase.page(at))
        }),
        Contender::new("translate/dependent/peer", TIMES, move || {
            follow(|at| peer.translate(at).unwrap_or(0))
        }),
        Contender::new("translate/dependent/tested", TIMES, move || {
            follow(|at| chase.tested(at).unwrap_or(0))
        }),
    ];
    Comparison::in_slices(contenders, |ns| {
        vec![
            Row::ns("translate, dependent / bare chase", ns[0], ns[1], Target::AtMost(1.2)),
            Row::ns("translate, dependent / peer", ns[0], ns[2], Target::None),
            Row::ns("a chase that tests each entry, dependent / bare chase", ns[3], ns[1], Target::None),
        ]
    })
}

fn independent(ours: &Rc<Scene>, peer: &Rc<peer::Space>, chase: Chase) -> Comparison {
    let (scene, kept, peer) = (Rc::clone(ours), Rc::clone(ours), Rc::clone(peer));
    let contenders = vec![
        Contender::new("translate/independent/ours", TIMES, move || {
            let section = scene.section(0);
            let view = scene.tree.open(&section);
            scatter(|at| {
                let ipa = Ipa::new(at);
                view.translate(ipa).pa(ipa).map_or(0, Pa::get)
            })
        }),
        Contender::new("translate/independent/chase", TIMES, move || {
            black_box(&kept);
            scatter(|at| chase.page(at))
        }),
        Contender::new("translate/independent/peer", TIMES, move || {
            scatter(|at| peer.translate(at).unwrap_or(0))
        }),
        Contender::new("translate/independent/tested", TIMES, move || {
            scatter(|at| chase.tested(at).unwrap_or(0))
        }),
    ];
    Comparison::in_slices(contenders, |ns| {
        vec![
            Row::ns("translate, independent / bare chase", ns[0], ns[1], Target::AtMost(1.6)),
            Row::ns("translate, independent / peer", ns[0], ns[2], Target::AtMost(0.95)),
            Row::ns("a chase that tests each entry, independent / bare chase", ns[3], ns[1], Target::None),
            Row::ns("a chase that tests each entry, independent / peer", ns[3], ns[2], Target::None),
        ]
    })
}

fn ascending(ours: &Rc<Scene>, peer: &Rc<peer::Space>, chase: Chase) -> Comparison {
    let (scene, kept) = (Rc::clone(ours), Rc::clone(ours));
    let (asked, walked) = (Rc::clone(peer), Rc::clone(peer));
    let contenders = vec![
        Contender::new("translate/ascending/ours", PAGES, move || {
            time(|| scene.sum_by_walk(range(origin(), GIB)))
        }),
        Contender::new("translate/ascending/peer", PAGES, move || {
            let origin = origin();
            time(|| {
                let pages = (0..PAGES).map(|page| asked.translate(origin + page * PAGE).unwrap_or(0));
                pages.fold(0u64, u64::wrapping_add)
            })
        }),
        Contender::new("translate/ascending/peer's walk", PAGES, move || time(|| walked.sum_by_walk())),
        Contender::new("translate/ascending/loads", PAGES, move || {
            black_box(&kept);
            time(|| chase.sum(origin(), PAGES))
        }),
    ];
    Comparison::new(contenders, |ns| {
        vec![
            Row::ns("translate, ascending / peer", ns[0], ns[1], Target::AtMost(0.25)),
            Row::ns("translate, ascending / peer's own walk", ns[0], ns[2], Target::None),
            Row::ns("translate, ascending / bare loads", ns[0], ns[3], Target::None),
        ]
    })
}
