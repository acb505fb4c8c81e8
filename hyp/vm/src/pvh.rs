//! What a kernel finds at its start on x86-64: the start information of the PVH boot protocol (Xen,
//! docs/misc/pvh.pandoc; the layout is in public/arch-x86/hvm/start_info.h).
//!
//! It lies where a machine of the other architecture has its device tree, and EBX points to it.

use crate::image::Placement;
use crate::manifest::VmConfig;
use alloc::vec::Vec;

/// The first word.
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
/// Bytes of the information, of an entry for a module, and of one for a range of memory.
const INFORMATION: usize = 56;
const MODULE: usize = 32;
const RANGE: usize = 24;
/// A range is RAM.
const RAM: u32 = 1;

/// Makes the start information of a machine, with its command line, initial file system and memory; `None` where it is too
/// long for its place.
pub fn start_information(config: &VmConfig, placement: &Placement) -> Option<Vec<u8>> {
    let base = placement.dtb.start().get();
    let ranges: Vec<_> = config.memory().collect();
    let (modules, memory) = (INFORMATION, INFORMATION + MODULE);
    let cmdline = memory + RANGE * ranges.len();
    let at = |offset: usize| base + offset as u64;
    let mut out = Vec::with_capacity(cmdline + config.cmdline.len() + 1);
    let mut word = |value: u32| out.extend_from_slice(&value.to_le_bytes());
    [MAGIC, VERSION, 0, u32::from(placement.initrd.is_some())].into_iter().for_each(&mut word);
    let mut long = |value: u64| out.extend_from_slice(&value.to_le_bytes());
    [at(modules), at(cmdline), 0, at(memory), ranges.len() as u64].into_iter().for_each(&mut long);
    let module = placement.initrd.map_or([0; 2], |range| [range.start().get(), range.len()]);
    module.into_iter().chain([0; 2]).for_each(&mut long);
    for range in &ranges {
        [range.start().get(), range.len(), u64::from(RAM)].into_iter().for_each(&mut long);
    }
    out.extend_from_slice(config.cmdline.as_bytes());
    out.push(0);
    (out.len() as u64 <= placement.dtb.len()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{plan, tests::config};
    use crate::manifest::{Format, Isa};
    use std::{string::String, vec};

    #[test]
    fn a_kernel_finds_its_memory_its_modules_and_its_command_line() {
        let config = VmConfig { isa: Isa::X86, ..config(Format::Flat, vec![1; 64], Some(100), 4 << 20) };
        let placement = plan(&config).expect("there is room");
        let out = start_information(&config, &placement).expect("short");
        let word = |at: usize| u32::from_le_bytes(out[at..at + 4].try_into().expect("there"));
        let long = |at: usize| u64::from_le_bytes(out[at..at + 8].try_into().expect("there"));
        let base = placement.dtb.start().get();
        let place = |address: u64| (address - base) as usize;
        assert_eq!((word(0), word(4), word(12)), (0x336e_c578, 1, 1));
        let initrd = placement.initrd.expect("there is one");
        let module = place(long(16));
        assert_eq!((long(module), long(module + 8)), (initrd.start().get(), 100));
        let memory = place(long(40));
        assert_eq!(
            (word(48), long(memory), long(memory + 8), word(memory + 16)),
            (1, 0x4000_0000, 4 << 20, 1)
        );
        let cmdline = &out[place(long(24))..];
        assert_eq!(cmdline, b"console=ttyAMA0\0");
    }

    #[test]
    fn a_command_line_without_end_is_refused() {
        let mut config = VmConfig { isa: Isa::X86, ..config(Format::Flat, vec![1; 64], None, 4 << 20) };
        config.cmdline = String::from_utf8(vec![b'x'; 0x1_0000]).expect("text");
        let placement = plan(&config).expect("there is room");
        assert_eq!(start_information(&config, &placement), None);
    }
}
