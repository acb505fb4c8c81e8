//! Numbers of the specification: Virtual I/O Device (VIRTIO) Version 1.2, by section. Only what these devices know.

/// Registers of a virtio-mmio device, by their offsets (4.2.2).
pub(super) mod register {
    pub(crate) const MAGIC: u32 = 0x000;
    pub(crate) const VERSION: u32 = 0x004;
    pub(crate) const DEVICE_ID: u32 = 0x008;
    pub(crate) const VENDOR_ID: u32 = 0x00c;
    pub(crate) const DEVICE_FEATURES: u32 = 0x010;
    pub(crate) const DEVICE_FEATURES_SEL: u32 = 0x014;
    pub(crate) const DRIVER_FEATURES: u32 = 0x020;
    pub(crate) const DRIVER_FEATURES_SEL: u32 = 0x024;
    pub(crate) const QUEUE_SEL: u32 = 0x030;
    pub(crate) const QUEUE_NUM_MAX: u32 = 0x034;
    pub(crate) const QUEUE_NUM: u32 = 0x038;
    pub(crate) const QUEUE_READY: u32 = 0x044;
    pub(crate) const QUEUE_NOTIFY: u32 = 0x050;
    pub(crate) const INTERRUPT_STATUS: u32 = 0x060;
    pub(crate) const INTERRUPT_ACK: u32 = 0x064;
    pub(crate) const STATUS: u32 = 0x070;
    pub(crate) const QUEUE_DESC_LOW: u32 = 0x080;
    pub(crate) const QUEUE_DESC_HIGH: u32 = 0x084;
    pub(crate) const QUEUE_DRIVER_LOW: u32 = 0x090;
    pub(crate) const QUEUE_DRIVER_HIGH: u32 = 0x094;
    pub(crate) const QUEUE_DEVICE_LOW: u32 = 0x0a0;
    pub(crate) const QUEUE_DEVICE_HIGH: u32 = 0x0a4;
    /// Length and base of the selected shared memory region: all ones where there is none.
    pub(crate) const SHM_FIRST: u32 = 0x0b0;
    pub(crate) const SHM_LAST: u32 = 0x0bc;
    pub(crate) const CONFIG: u32 = 0x100;
}

/// "virt", in the magic register.
pub(super) const MAGIC: u32 = 0x7472_6976;
/// The version of the registers that is not the legacy one.
pub(super) const VERSION: u32 = 2;
/// "MEZZ", in the vendor's register.
pub(super) const VENDOR: u32 = 0x5a5a_454d;

/// Bits of a device's status (2.1).
pub(super) mod status {
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const NEEDS_RESET: u8 = 64;
    pub(crate) const FAILED: u8 = 128;
}

/// Features (6, and 5.2.3 for block devices), as bits.
pub(super) mod feature {
    /// The device is not a legacy one. Without it there is no talking to these.
    pub(crate) const VERSION_1: u64 = 1 << 32;
    /// A block device says how many segments a request may have.
    pub(crate) const BLK_SEG_MAX: u64 = 1 << 2;
    /// A block device knows the flush command.
    pub(crate) const BLK_FLUSH: u64 = 1 << 9;
}

/// Why a device interrupts (4.2.2, InterruptStatus).
pub(super) mod interrupt {
    pub(crate) const USED_BUFFER: u8 = 1;
    pub(crate) const CONFIG_CHANGE: u8 = 2;
}

/// Flags of a descriptor (2.7.5).
pub(super) mod descriptor {
    pub(crate) const BYTES: u64 = 16;
    pub(crate) const NEXT: u16 = 1;
    pub(crate) const WRITE: u16 = 2;
    pub(crate) const INDIRECT: u16 = 4;
}

/// Flag of the available ring: the driver wants no interrupt for used buffers (2.7.7).
pub(super) const NO_INTERRUPT: u16 = 1;

/// Block devices (5.2).
pub(super) mod block {
    /// The bytes that all is counted in.
    pub(crate) const SECTOR: u64 = 512;
    /// Bytes of a request's header: type, reserved, sector.
    pub(crate) const HEADER: usize = 16;
    /// Bytes of a device's name.
    pub(crate) const ID: usize = 20;

    pub(crate) const IN: u32 = 0;
    pub(crate) const OUT: u32 = 1;
    pub(crate) const FLUSH: u32 = 4;
    pub(crate) const GET_ID: u32 = 8;

    pub(crate) const OK: u8 = 0;
    pub(crate) const IO_ERROR: u8 = 1;
    pub(crate) const UNSUPPORTED: u8 = 2;
}
