//! Two CPUs in one space: translating both, and translating while the other changes it.

use crate::chase::{Chase, Random};
use crate::comparison::{Comparison, Contender, Row, Target};
use crate::scene::{BLOCK, GIB, ONE_UP, PAGE, PAGES, Scene, mapping, origin};
use stage2::Section;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread;
use std::time::{Duration, Instant};
use types::{Height, Ipa, Pa};

/// How many translations a thread does in a pass beside another that translates.
const TIMES: u64 = PAGES;
/// How many a reader does in a pass.
const READS: u64 = 8 * PAGES;

/// Has `threads` threads do `work`, each with its number, from one moment on. Returns the time to the last one's end.
pub fn together(threads: usize, work: impl Fn(usize) + Sync) -> Duration {
    let waiting = AtomicUsize::new(threads);
    let times: Vec<(Instant, Instant)> = thread::scope(|s| {
        let run = |n| {
            let (waiting, work) = (&waiting, &work);
            s.spawn(move || {
                waiting.fetch_sub(1, Release);
                while waiting.load(Acquire) > 0 {
                    std::hint::spin_loop();
                }
                let start = Instant::now();
                work(n);
                (start, Instant::now())
            })
        };
        let threads: Vec<_> = (0..threads).map(run).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
    });
    let start = times.iter().map(|(start, _)| *start).min();
    let end = times.iter().map(|(_, end)| *end).max();
    start.zip(end).map_or(Duration::ZERO, |(start, end)| end - start)
}

/// Adds up what `translate` says for addresses at random in 1 GiB.
#[inline(always)]
fn scatter(seed: u64, times: u64, translate: impl Fn(u64) -> u64) {
    let (origin, mut random) = (origin(), Random::new(seed));
    let mut sum = 0u64;
    for _ in 0..times {
        sum = sum.wrapping_add(translate(origin + random.next(18) * PAGE));
    }
    black_box(sum);
}

/// One thread and two, ours and the bare loop.
pub fn translating() -> Vec<Comparison> {
    let scene = Arc::new(Scene::new());
    scene.map(mapping(origin(), 0, GIB, Height::PAGE));
    // SAFETY: the scene lives in each contender that chases, and stays as it is.
    let chase = unsafe { Chase::through(&scene) };
    let ours = |name, threads| {
        let scene = Arc::clone(&scene);
        Contender::new(name, threads as u64 * TIMES, move || {
            together(threads, |n| {
                let section = scene.section(n);
                let view = scene.tree.open(&section);
                scatter(n as u64, TIMES, |at| {
                    let ipa = Ipa::new(at);
                    view.translate(ipa).pa(ipa).map_or(0, Pa::get)
                });
            })
        })
    };
    let bare = |name, threads| {
        let scene = Arc::clone(&scene);
        Contender::new(name, threads as u64 * TIMES, move || {
            black_box(&scene);
            together(threads, |n| scatter(n as u64, TIMES, |at| chase.page(at)))
        })
    };
    let contenders = vec![
        ours("threads/ours, one", 1),
        ours("threads/ours, two", 2),
        bare("threads/chase, one", 1),
        bare("threads/chase, two", 2),
    ];
    vec![Comparison::in_slices(contenders, |ns| {
        let (ours, bare) = (ns[0] / ns[1], ns[2] / ns[3]);
        vec![Row::scaling("two threads translating / bare loop's scaling", ours, bare, Target::AtLeast(0.95))]
    })]
}

/// How many translations a reader does in one stay in the hypervisor.
const STAY: u64 = 256;

/// A reader by itself, and beside a CPU that splits one block after another and makes it whole again.
pub fn disturbed() -> Vec<Comparison> {
    let scene = Arc::new(Scene::new());
    scene.map(mapping(origin(), 0, GIB, ONE_UP));
    let (alone, beside) = (Arc::clone(&scene), scene);
    let contenders = vec![
        Contender::new("disturbed/beside a writer", READS, move || {
            let (done, begun) = (AtomicBool::new(false), AtomicBool::new(false));
            thread::scope(|s| {
                s.spawn(|| {
                    while !done.load(Relaxed) {
                        for block in (origin()..origin() + GIB).step_by(BLOCK as usize) {
                            beside.split(1, block);
                            beside.collapse(1, block);
                        }
                        begun.store(true, Release);
                    }
                });
                while !begun.load(Acquire) {
                    std::hint::spin_loop();
                }
                let took = read(&beside);
                done.store(true, Relaxed);
                took
            })
        }),
        Contender::new("disturbed/undisturbed", READS, move || read(&alone)),
    ];
    vec![Comparison::new(contenders, |ns| {
        vec![Row::rate("readers beside a writer / undisturbed", ns[0], ns[1], Target::AtLeast(0.8))]
    })]
}

/// Translates as CPU 2, passing a quiescent point now and then.
fn read(scene: &Scene) -> Duration {
    let mut section = scene.section(2);
    let start = Instant::now();
    for stay in 0..READS / STAY {
        let view = scene.tree.open(&section);
        scatter(stay, STAY, |at| {
            let ipa = Ipa::new(at);
            view.translate(ipa).pa(ipa).map_or(0, Pa::get)
        });
        section.pass();
    }
    start.elapsed()
}
