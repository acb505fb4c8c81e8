//! Sorting, in few instructions to have: the standard library's is fast, and several KiB of an image for each kind of element.

/// Sorts `items` by `key`, in place; those with equal keys come in any order. Never more than some `n log n` steps, whatever
/// comes in: a heap (J. W. J. Williams, Algorithm 232).
pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    for root in (0..items.len() / 2).rev() {
        sift(items, root, &key);
    }
    for end in (1..items.len()).rev() {
        items.swap(0, end);
        sift(&mut items[..end], 0, &key);
    }
}

/// Puts the item at `root` in its place in the heap below, whose parents are not smaller than their children but for it.
fn sift<T, K: Ord>(items: &mut [T], mut root: usize, key: &impl Fn(&T) -> K) {
    loop {
        let left = 2 * root + 1;
        let Some(first) = items.get(left) else { return };
        let child = match items.get(left + 1) {
            Some(second) if key(first) < key(second) => left + 1,
            _ => left,
        };
        if key(&items[root]) >= key(&items[child]) {
            return;
        }
        items.swap(root, child);
        root = child;
    }
}

#[cfg(test)]
mod tests {
    use super::sort_by_key;

    extern crate std;
    use std::vec::Vec;

    #[test]
    fn every_order_of_few_is_sorted() {
        const FEW: u32 = if cfg!(miri) { 3 } else { 6 };
        for number in 0..FEW.pow(FEW) {
            let items: Vec<u32> = (0..FEW).map(|place| number / FEW.pow(place) % FEW).collect();
            for length in 0..=items.len() {
                let mut sorted = items[..length].to_vec();
                let mut expected = sorted.clone();
                expected.sort_unstable();
                sort_by_key(&mut sorted, |item| *item);
                assert_eq!(sorted, expected);
            }
        }
    }

    #[test]
    fn many_are_sorted_by_the_key_and_none_is_lost() {
        const MANY: u32 = if cfg!(miri) { 100 } else { 5000 };
        let mut seed = 1_u32;
        let mut items: Vec<(u32, u32)> = (0..MANY)
            .map(|number| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 20, number)
            })
            .collect();
        sort_by_key(&mut items, |item| item.0);
        assert!(items.is_sorted_by_key(|item| item.0));
        items.sort_unstable_by_key(|item| item.1);
        assert!(items.iter().map(|item| item.1).eq(0..MANY));
    }
}
