//! Time in other units than ticks, in 64 bits: the machinery for wider numbers is some KiB of an image.

/// Returns `count * times / of`, rounded down, for a `times` and an `of` whose product has 64 bits: a second in nanoseconds,
/// and the ticks of any clock below 18 GHz. Saturates, and takes an `of` of zero for one.
pub(crate) const fn scale(count: u64, times: u64, of: u64) -> u64 {
    let of = if of == 0 { 1 } else { of };
    let rest = (count % of).saturating_mul(times) / of;
    (count / of).saturating_mul(times).saturating_add(rest)
}

#[cfg(test)]
mod tests {
    use super::scale;

    #[test]
    fn it_is_what_wider_numbers_say() {
        let clocks = [1, 3, 62_500_000, 1_000_000_000, 5_123_456_789, 18_000_000_000];
        let counts = [0, 1, 61, 62_500_001, 0xffff_ffff, 1 << 40, 0x1234_5678_9abc];
        for (of, count) in clocks.iter().flat_map(|&of| counts.map(|count| (of, count))) {
            for times in [1, 250, 1_000_000, 1_000_000_000] {
                let wide = u128::from(count) * u128::from(times) / u128::from(of);
                let wide = u64::try_from(wide).unwrap_or(u64::MAX);
                assert_eq!(scale(count, times, of), wide, "{count} * {times} / {of}");
            }
        }
    }

    #[test]
    fn what_has_no_room_saturates_and_nothing_divides_by_zero() {
        assert_eq!(scale(u64::MAX, 1_000_000, 1), u64::MAX);
        assert_eq!(scale(7, 2, 0), 14);
    }
}
