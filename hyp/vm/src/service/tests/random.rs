//! Calls at random: nothing panics, nothing leaks, and the tables stay as the records say.

use super::*;
use proptest::prelude::*;

fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..SIZE / PAGE + 2).prop_map(|page| RAM + page * PAGE),
        4 => (0_u64..10).prop_map(|shift| PAGE << shift),
        4 => 0_u64..4,
        2 => (0_u64..6).prop_map(|block| RAM + block * BLOCK),
        2 => (1_u64..5).prop_map(|blocks| blocks * BLOCK),
        1 => (0_u64..3).prop_map(|page| MORE + page * PAGE),
        1 => 0_u64..600,
        1 => any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn random_calls_do_no_harm(
        calls in prop::collection::vec((0_u32..0x60, prop::array::uniform4(argument())), 1..120)
    ) {
        with_rig(|rig| {
            for (function, arguments) in &calls {
                let (status, ..) = rig.call_raw(abi::RANGE_64 | function, arguments);
                let status = Status::of(status).expect("a status");
                assert_ne!(status, Status::Broken);
                if arguments[3] & 1 == 0 {
                    rig.with_memory(1, |memory| rig.service.serve(memory, Company::Others));
                }
            }
            rig.whole(calls::SELF_CHECK, RAM, SIZE, 0);
        });
    }
}
