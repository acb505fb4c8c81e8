//! Changes that nobody has asked for: contents stay, and each kind of change is made.

use super::*;
use crate::service::Churn;

#[test]
fn contents_outlast_every_kind_of_change() {
    with_rig(|rig| {
        rig.whole(calls::BALLOON_IN, RAM, SIZE, 0);
        let pages = SIZE / PAGE;
        for page in 0..pages {
            rig.store(RAM + page * PAGE, page * 7 + 1);
        }
        let churn = Churn::default();
        let mut structural = 0;
        for turn in 0..6000_u64 {
            structural += rig.with_memory(1, |memory| churn.turn(memory, range(RAM, SIZE)));
            // The guest goes on: it reads, and writes anew.
            let page = turn * 31 % pages;
            assert_eq!(rig.load(RAM + page * PAGE), page * 7 + 1, "page {page} after turn {turn}");
            rig.store(RAM + page * PAGE, page * 7 + 1);
        }
        for page in 0..pages {
            assert_eq!(rig.load(RAM + page * PAGE), page * 7 + 1, "page {page}");
        }
        rig.with_memory(1, |memory| churn.end(memory));
        for (name, count) in churn.counts() {
            assert!(count > 9, "{name}: {count}");
        }
        assert!(churn.structural() >= structural && structural > 3000, "{structural}");
        assert_eq!(rig.whole(calls::SELF_CHECK, RAM, SIZE, 0)[0], SIZE);
    });
}

#[test]
fn a_guests_own_log_is_left_alone() {
    with_rig(|rig| {
        rig.whole(calls::BALLOON_IN, RAM, SIZE, 0);
        rig.log_all();
        rig.store(RAM + 5 * PAGE, 1);
        let churn = Churn::default();
        for _ in 0..2000 {
            rig.with_memory(1, |memory| churn.turn(memory, range(RAM, SIZE)));
        }
        assert!(rig.written() >= 1);
    });
}
