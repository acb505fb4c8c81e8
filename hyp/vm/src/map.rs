//! Where things are in a virtual machine: the addresses and interrupt numbers of QEMU's `virt` machine.

use types::Ipa;

/// The interrupt distributor.
pub const GICD: Ipa = Ipa::new(0x0800_0000);
/// Bytes of the distributor's registers.
pub const GICD_SIZE: u64 = 0x1_0000;
/// The CPU interface of a GICv2: the hardware's virtual one is mapped there.
pub const GICC: Ipa = Ipa::new(0x0801_0000);
/// Bytes of a GICv2's CPU interface.
pub const GICC_SIZE: u64 = 0x2000;
/// The first vCPU's redistributor; the others follow.
pub const GICR: Ipa = Ipa::new(0x080a_0000);
/// Bytes of one redistributor: a frame of controls and a frame of private interrupts.
pub const GICR_SIZE: u64 = 0x2_0000;
/// The serial port, a PL011.
pub const UART: Ipa = Ipa::new(0x0900_0000);
/// Bytes of the serial port's registers.
pub const UART_SIZE: u64 = 0x1000;
/// The serial port's interrupt: shared peripheral interrupt 1.
pub const UART_INTID: u32 = 33;
/// The page of registers for calls from user space, where the manifest grants them.
pub const CONTROL: Ipa = Ipa::new(abi::page::BASE);
/// The same page of a guest that has the machine.
pub const CONTROL_OF_PRIMARY: Ipa = Ipa::new(abi::page::BASE_OF_PRIMARY);
/// Bytes of the hypercall page.
pub const CONTROL_SIZE: u64 = abi::page::SIZE;
/// The first virtio-mmio slot. The devices that the manifest gives a machine are in the first slots, in its order.
pub const VIRTIO: Ipa = Ipa::new(0x0a00_0000);
/// Bytes of one virtio-mmio slot.
pub const VIRTIO_SIZE: u64 = 0x200;
/// The number of virtio-mmio slots.
pub const VIRTIO_SLOTS: u64 = 32;
/// The window in which a machine finds what others lend it, where the manifest grants it the calls.
pub const BORROWED: Ipa = Ipa::new(abi::share::WINDOW);
/// Bytes of that window.
pub const BORROWED_SIZE: u64 = abi::share::WINDOW_BYTES;
/// The interrupt of the device in slot 0, shared peripheral interrupt 16; the others' follow.
pub const VIRTIO_INTID: u32 = 48;

/// Returns the interrupt of the device in a slot.
pub(crate) const fn virtio_intid(slot: usize) -> u32 {
    VIRTIO_INTID + slot as u32
}

/// Main memory.
pub const RAM: Ipa = Ipa::new(0x4000_0000);

/// Main memory's size is a multiple of this many bytes, as are the bounds of every further region: a block of 2 MiB
/// then never holds two owners' memory.
pub const RAM_UNIT: u64 = 0x20_0000;

/// The virtual timer's private interrupt.
pub const VIRTUAL_TIMER_INTID: u32 = 27;
/// The physical timer's private interrupt.
pub const PHYSICAL_TIMER_INTID: u32 = 30;
