//! What this payload was told about its machine.

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
#[path = "x86/machine.rs"]
mod x86;

use crate::cell::BootCell;
use crate::list::List;
use crate::region::Region;

#[cfg(target_arch = "aarch64")]
pub use arm::*;
#[cfg(target_arch = "x86_64")]
pub use x86::*;

/// What is under the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Host {
    /// A hypervisor, with all its promises.
    Hypervisor,
    /// The machine itself.
    Bare,
}

static MACHINE: BootCell<Machine> = BootCell::new();

/// Returns the machine.
///
/// # Panics
/// Before it was read.
pub fn get() -> &'static Machine {
    MACHINE.get().expect("it is read at the start")
}

impl Machine {
    /// Returns the value of `name=value` in the boot arguments, or an empty string for `name` alone.
    pub fn argument(&self, name: &str) -> Option<&'static str> {
        argument(self.arguments, name)
    }

    /// Tells whether `address` is in memory.
    pub fn is_ram(&self, address: u64) -> bool {
        self.ram.iter().any(|r| r.contains(address))
    }

    /// Returns the address after the highest byte of memory.
    pub fn ram_end(&self) -> u64 {
        self.ram.iter().map(|r| r.end).max().unwrap_or(0)
    }

    /// Returns how many bytes of memory there are.
    pub fn ram_size(&self) -> u64 {
        self.ram.iter().map(|r| r.size()).sum()
    }
}

fn argument(arguments: &'static str, name: &str) -> Option<&'static str> {
    arguments.split_ascii_whitespace().find_map(|word| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        (key == name).then_some(value)
    })
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Returns the memory that holds nothing of the payload's, and nothing that it was given.
pub fn free_ram() -> List<Region, { crate::region::MAX_HOLES }> {
    let machine = get();
    let mut taken = List::<Region, 128>::new();
    for region in machine.taken() {
        let _ = taken.push(region.widen(crate::mmu::PAGE));
    }
    let mut not_ram = machine.ram;
    for hole in crate::region::holes(&mut not_ram, u64::MAX).iter() {
        let _ = taken.push(*hole);
    }
    crate::region::holes(&mut taken, u64::MAX)
}
