//! All virtual machines of a machine, and which CPU runs what.

use crate::{Vcpu, Vm};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use types::{CpuId, MAX_CPUS};

/// The virtual machines.
#[derive(Debug)]
pub struct Vms {
    vms: Vec<Vm>,
    /// The vCPU of each CPU: index of the machine, index of the vCPU.
    places: [Option<(u16, u16)>; MAX_CPUS],
    live: AtomicUsize,
}

/// Whether a machine has anything to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remaining {
    /// Some virtual machines are on.
    Some,
    /// None is. Told once.
    None,
}

impl Vms {
    /// Takes machines whose vCPUs are placed on CPUs of their own ([`crate::configure`] sees to that), and counts them all
    /// as on.
    pub fn new(vms: Vec<Vm>) -> Self {
        let mut places = [None; MAX_CPUS];
        for (index, vm) in vms.iter().enumerate() {
            for (vcpu, cpu) in vm.config().cpus.iter().enumerate() {
                places[cpu.index()] = Some((index as u16, vcpu as u16));
            }
        }
        Self { live: AtomicUsize::new(vms.len()), vms, places }
    }

    /// Goes through the machines, in the manifest's order.
    pub fn iter(&self) -> impl Iterator<Item = &Vm> {
        self.vms.iter()
    }

    /// Returns what `cpu` runs; `None` where it runs nothing.
    pub fn placed_on(&self, cpu: CpuId) -> Option<(&Vm, &Vcpu)> {
        let (vm, vcpu) = self.places[cpu.index()]?;
        let vm = self.vms.get(usize::from(vm))?;
        Some((vm, vm.vcpus().get(usize::from(vcpu))?))
    }

    /// Notes that a machine is off for good: once for each [`crate::Next::Ended`] that is not followed by a start.
    pub fn one_is_off(&self) -> Remaining {
        if self.live.fetch_sub(1, Relaxed) == 1 { Remaining::None } else { Remaining::Some }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Console, IdBits, TimerIntids,
        image::tests::{arm64_image, config},
        manifest::Format,
    };

    struct Nowhere;

    impl Console for Nowhere {
        fn put(&self, _: u8) {}
    }

    fn vm(cpus: &[usize]) -> Vm {
        let mut config = config(Format::Image, arm64_image(0, 0x10_0000, 64), None, 64 << 20);
        config.cpus = cpus.iter().filter_map(|&cpu| CpuId::new(cpu)).collect();
        let timers = TimerIntids { virtual_timer: 27, physical_timer: 30 };
        Vm::new(config, IdBits { ipa_bits: 40 }, timers, &Nowhere).unwrap()
    }

    #[test]
    fn each_cpu_runs_the_vcpu_that_is_placed_on_it() {
        let vms = Vms::new(vec![vm(&[3, 1]), vm(&[0])]);
        let first = vms.iter().next().unwrap();
        let placed = |cpu| {
            let (vm, vcpu) = vms.placed_on(CpuId::new(cpu).unwrap())?;
            Some((core::ptr::eq(vm, first), vcpu.index()))
        };
        assert_eq!(
            [placed(0), placed(1), placed(2), placed(3)],
            [Some((false, 0)), Some((true, 1)), None, Some((true, 0))]
        );
    }

    #[test]
    fn nothing_remains_when_the_last_machine_is_off() {
        let vms = Vms::new(vec![vm(&[0]), vm(&[1])]);
        assert_eq!((vms.one_is_off(), vms.one_is_off()), (Remaining::Some, Remaining::None));
    }
}
