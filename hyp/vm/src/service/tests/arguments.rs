//! Arguments as an enemy sends them.

use super::*;

#[test]
pub(super) fn a_range_that_is_none_is_refused_by_every_call_on_ranges() {
    with_rig(|rig| {
        let invalid = [
            (RAM, 0, 0),
            (RAM + 8, PAGE, 0),
            (RAM, PAGE + 8, 0),
            (RAM, BLOCK, BLOCK),
            (RAM, BLOCK, u64::MAX),
            (RAM, BLOCK, PAGE + 1),
            (u64::MAX - PAGE + 1, 2 * PAGE, 0),
            (u64::MAX, u64::MAX, u64::MAX),
        ];
        let elsewhere = [
            (0, BLOCK, 0),
            (RAM, SIZE + PAGE, 0),
            (RAM - PAGE, 2 * PAGE, 0),
            (RAM, MORE + BLOCK - RAM, 0),
            (1 << 36, BLOCK, 0),
        ];
        let before = rig.machine.stats();
        for function in calls::ON_RANGES {
            for (cases, status) in [(&invalid[..], Status::InvalidParameter), (&elsewhere, Status::NotMemory)]
            {
                for &(start, bytes, cursor) in cases {
                    let (found, _) = rig.call(function, &[start, bytes, 1, cursor]);
                    assert_eq!(found, status, "{function:#x} of {start:#x}, {bytes:#x} at {cursor:#x}");
                }
            }
        }
        assert_eq!(rig.machine.stats(), before);
    });
}

#[test]
pub(super) fn parameters_that_are_not_among_their_values_are_refused() {
    with_rig(|rig| {
        for (function, parameters) in [
            (calls::PROTECT, &[0, 2, 4, 6, 8, u64::MAX][..]),
            (calls::COLLAPSE, &[2, u64::MAX]),
            (calls::LOG_START, &[3, u64::MAX]),
            (calls::PIN, &[2, u64::MAX]),
        ] {
            for &parameter in parameters {
                let (status, _) = rig.call(function, &[RAM, BLOCK, parameter, 0]);
                assert_eq!(status, Status::InvalidParameter, "{function:#x} with {parameter}");
            }
        }
        assert_eq!(rig.call(calls::COLLAPSE, &[RAM + PAGE, BLOCK, 0, 0]).0, Status::InvalidParameter);
        assert_eq!(rig.call(calls::COLLAPSE, &[RAM, BLOCK, 0, PAGE]).0, Status::InvalidParameter);
        assert_eq!(rig.call(calls::STATISTICS, &[99]).0, Status::InvalidParameter);
        assert_eq!(rig.call(calls::UNPIN, &[0, 2]).0, Status::InvalidParameter);
        // A buffer outside of memory.
        assert_eq!(rig.call(calls::AGE_HARVEST, &[RAM, BLOCK, 0, 0]).0, Status::NotMemory);
        assert_eq!(rig.call(calls::AGE_HARVEST, &[RAM, BLOCK, RAM + 8, 0]).0, Status::InvalidParameter);
        assert_eq!(rig.call(calls::AGE_HARVEST, &[RAM, BLOCK, RAM + SIZE - PAGE, 0]).0, Status::NotMemory);
    });
}

#[test]
pub(super) fn what_is_not_offered_changes_x0_only() {
    with_rig(|rig| {
        for function in [calls::TRACE_START, calls::TRACE_STOP, abi::RANGE_64, abi::RANGE_64 | 0xff] {
            let (status, results, after) = rig.call_raw(function, &[1, 2, 3, 4, 5]);
            assert_eq!(status, abi::NOT_SUPPORTED as u64);
            assert_eq!((results, after), ([1, 2, 3, 4, 5], After::Nothing));
            assert_eq!(rig.call(calls::FEATURES, &[function.into()]).0, Status::NotSupported);
        }
        for function in calls::OFFERED {
            let (status, results) = rig.call(calls::FEATURES, &[function.into()]);
            assert_eq!(status, Status::Success);
            let revision = u64::from(abi::REVISION_MAJOR) << 16 | u64::from(abi::REVISION_MINOR);
            assert_eq!(results, [revision, 0, 0, 0, 0]);
        }
        assert_eq!(rig.call(calls::FEATURES, &[u64::MAX]).0, Status::NotSupported);
    });
}

#[test]
pub(super) fn what_the_caller_answers_is_offered_where_there_is_a_caller_for_it() {
    with_rig(|rig| {
        let others = [&abi::share::ALL[..], &abi::control::ALL].concat();
        const BESIDES: [&[&[u32]]; 3] = [&[], &[&abi::share::ALL], &[&abi::share::ALL, &abi::control::ALL]];
        for besides in BESIDES {
            let service = Service::new([range(RAM, SIZE)].into_iter(), Granted::All, besides);
            for &function in &others {
                let mut regs: CallRegs = [0; 18];
                (regs[0], regs[1]) = (calls::FEATURES.into(), function.into());
                let after = rig.with_memory(0, |memory| service.call(memory, &mut regs));
                let is_there = besides.iter().any(|functions| functions.contains(&function));
                let expected = if is_there { Status::Success } else { Status::NotSupported };
                assert_eq!((regs[0], after), (expected.value(), After::Nothing), "{function:#x}");
            }
        }
    });
}

#[test]
pub(super) fn who_has_memory_that_devices_reach_has_only_calls_that_leave_it_there() {
    with_rig(|rig| {
        let besides: &[&[u32]] = &[&abi::control::ALL];
        let service = Service::new([range(RAM, SIZE)].into_iter(), Granted::Looks, besides);
        let call = |function: u32, arguments: [u64; 2]| {
            let mut regs: CallRegs = [0; 18];
            regs[0] = function.into();
            regs[1..3].copy_from_slice(&arguments);
            let after = rig.with_memory(0, |memory| service.call(memory, &mut regs));
            (regs, after)
        };
        for function in calls::OFFERED.into_iter().chain(calls::OF_THE_TRACE) {
            let is_there = calls::LOOKS.contains(&function);
            let (regs, after) = call(function, [RAM, SIZE]);
            assert_eq!(regs[0] == Status::NotSupported.value(), !is_there || function == calls::FEATURES);
            assert!(is_there || after == After::Nothing);
            let expected = if is_there { Status::Success } else { Status::NotSupported };
            assert_eq!(call(calls::FEATURES, [function.into(), 0]).0[0], expected.value(), "{function:#x}");
        }
        assert_eq!(call(calls::FEATURES, [abi::control::CREATE.into(), 0]).0[0], Status::Success.value());
    });
}

#[test]
pub(super) fn handles_and_tickets_that_were_never_given_out_are_refused() {
    with_rig(|rig| {
        for number in [0, 1, 7, 255, 256, 1 << 32, u64::MAX] {
            assert_eq!(rig.call(calls::UNPIN, &[number, 0]).0, Status::NoHandle);
            assert_eq!(rig.call(calls::DMA_POLL, &[number]).0, Status::NoHandle);
        }
    });
}

#[test]
pub(super) fn the_trace_is_offered_where_it_is_granted_and_answered_by_the_caller() {
    with_rig(|rig| {
        let service = Service::new([range(RAM, SIZE)].into_iter(), Granted::Trace, &[]);
        for function in calls::OF_THE_TRACE {
            let call = |function: u32, argument: u64| {
                let mut regs: CallRegs = [0; 18];
                (regs[0], regs[1]) = (function.into(), argument);
                (rig.with_memory(0, |memory| service.call(memory, &mut regs)), regs)
            };
            let (after, regs) = call(function, 7);
            assert_eq!((after, regs[0], regs[1]), (After::Trace, function.into(), 7), "untouched");
            assert_eq!(call(calls::FEATURES, function.into()).1[0], Status::Success.value());
        }
    });
}
