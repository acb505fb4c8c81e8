//! What ACPI tells: the CPUs (ACPI 6.5, 5.2.12 "Multiple APIC Description Table").

use super::loader::Acpi;
use acpi::madt::{Madt, MadtEntry};
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};
use arrayvec::ArrayVec;
use core::ptr::NonNull;
use types::MAX_CPUS;

/// A processor that runs, or can.
const ENABLED: u32 = 1;

/// The tables are seen at their own addresses.
#[derive(Clone, Copy)]
struct Identity;

impl AcpiHandler for Identity {
    unsafe fn map_physical_region<T>(&self, at: usize, bytes: usize) -> PhysicalMapping<Self, T> {
        let seen = NonNull::new(core::ptr::with_exposed_provenance_mut(at)).unwrap_or(NonNull::dangling());
        // SAFETY: the first 4 GiB are mapped when this is used; the crate checks signatures, lengths and sums.
        unsafe { PhysicalMapping::new(at, seen, bytes, bytes, *self) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

/// The CPUs of the machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cpus {
    /// The local APIC's number of each, in the table's order.
    pub(crate) apic_ids: ArrayVec<u32, MAX_CPUS>,
    /// CPUs beyond what there is room for.
    pub(crate) further: usize,
}

/// Why the CPUs are unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoTable;

/// Reads which CPUs there are.
///
/// # Errors
/// [`NoTable`] where there is no such table that is whole.
///
/// # Safety
/// `acpi` is what the loader has told, and the first 4 GiB are mapped.
pub(crate) unsafe fn cpus(acpi: Acpi) -> Result<Cpus, NoTable> {
    // SAFETY: the caller's promise.
    let tables = unsafe { AcpiTables::from_rsdt(Identity, acpi.revision, acpi.root as usize) };
    let madt = tables.map_err(|_| NoTable)?.find_table::<Madt>().map_err(|_| NoTable)?;
    let mut cpus = Cpus::default();
    for entry in madt.get().entries() {
        let (id, flags) = match entry {
            MadtEntry::LocalApic(entry) => (u32::from(entry.apic_id), entry.flags),
            MadtEntry::LocalX2Apic(entry) => (entry.x2apic_id, entry.flags),
            _ => continue,
        };
        if flags & ENABLED != 0 && !cpus.apic_ids.contains(&id) && cpus.apic_ids.try_push(id).is_err() {
            cpus.further += 1;
        }
    }
    Ok(cpus)
}
