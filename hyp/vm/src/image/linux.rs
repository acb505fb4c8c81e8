//! Linux on x86-64: what a `bzImage` is, where it goes, and what it finds at its start (Linux,
//! Documentation/arch/x86/boot.rst, "32-bit boot protocol").
//!
//! The kernel unpacks itself where it is put, moves if it must, and is entered in 32-bit protected mode with ESI pointing to
//! its parameters, the *zero page*.

use super::{BadImage, Kernel, Piece};
use crate::manifest::VmConfig;
use alloc::vec;
use alloc::vec::Vec;
use types::Ipa;

/// Where the setup header begins, in the file and in the zero page, and its fields.
const HEADER: usize = 0x1f1;
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADER: usize = 0x210;
const FLAGS: usize = 0x211;
const INITRD: usize = 0x218;
const INITRD_SIZE: usize = 0x21c;
const CMDLINE: usize = 0x228;
const RELOCATABLE: usize = 0x234;
const CMDLINE_SIZE: usize = 0x238;
const PREFERRED: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// Fields of the zero page.
const RSDP: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const E820: usize = 0x2d0;
const E820_MOST: usize = 128;

/// The oldest protocol that names how much room the kernel needs: 2.10.
const OLDEST: u16 = 0x20a;
/// A loader without a number of its own.
const UNKNOWN_LOADER: u8 = 0xff;
/// The kernel is loaded high; it may not use the heap of real mode.
const LOADED_HIGH: u8 = 1;
/// Bytes of the zero page; the command line follows.
const ZERO_PAGE: usize = 4096;

/// A range of the machine's addresses, as firmware tells of it: the start, the bytes, and what it is (1 is RAM).
pub type E820Entry = (u64, u64, u32);

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Tells whether a file is one.
pub(super) fn is_linux(bytes: &[u8]) -> bool {
    bytes.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
}

/// Returns where the part that runs in protected mode begins in the file.
fn protected_part(bytes: &[u8]) -> Option<usize> {
    let sectors = match *bytes.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    Some((sectors + 1) * 512).filter(|at| *at < bytes.len())
}

/// Reads the header.
pub(super) fn kernel(bytes: &'static [u8]) -> Result<Kernel, BadImage> {
    if !is_linux(bytes) {
        return Err(BadImage::NotLinux);
    }
    let version = word(bytes, VERSION).ok_or(BadImage::BadHeader)? as u16;
    let preferred = word(bytes, PREFERRED).ok_or(BadImage::BadHeader)?;
    let above = word(bytes, PREFERRED + 4).ok_or(BadImage::BadHeader)?;
    let room = word(bytes, INIT_SIZE).ok_or(BadImage::BadHeader)?;
    let start = protected_part(bytes).ok_or(BadImage::BadHeader)?;
    if version < OLDEST || bytes[RELOCATABLE] == 0 || above != 0 || preferred == 0 {
        return Err(BadImage::BadHeader);
    }
    let bytes = &bytes[start..];
    let at = Ipa::new(preferred.into());
    let room = u64::from(room).max(bytes.len() as u64);
    Ok(Kernel { pieces: vec![Piece { at, bytes, zeroes: 0, room }], entry: at })
}

/// Makes the zero page of a machine and, behind it, its command line: what goes to `parameters`. `None` where the command
/// line or the list of memory is too long.
pub fn zero_page(
    config: &VmConfig,
    placement: &super::Placement,
    memory: &[E820Entry],
    rsdp: u64,
) -> Option<Vec<u8>> {
    let file = config.kernel.bytes;
    let parameters = placement.dtb.start().get();
    let mut out = vec![0; ZERO_PAGE];
    // The header's end is where its jump goes to (boot.rst, "Details of Header Fields", jump).
    let end = MAGIC + usize::from(*file.get(0x201)?);
    out.get_mut(HEADER..end)?.copy_from_slice(file.get(HEADER..end)?);
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(LOADER, &[UNKNOWN_LOADER]);
    put(FLAGS, &[file[FLAGS] | LOADED_HIGH]);
    put(CMDLINE, &(parameters as u32 + ZERO_PAGE as u32).to_le_bytes());
    if let Some(initrd) = placement.initrd {
        put(INITRD, &(initrd.start().get() as u32).to_le_bytes());
        put(INITRD_SIZE, &(initrd.len() as u32).to_le_bytes());
    }
    put(RSDP, &rsdp.to_le_bytes());
    if memory.len() > E820_MOST || config.cmdline.len() > word(file, CMDLINE_SIZE)? as usize {
        return None;
    }
    put(E820_ENTRIES, &[memory.len() as u8]);
    for (index, (start, bytes, kind)) in memory.iter().enumerate() {
        let at = E820 + 20 * index;
        put(at, &start.to_le_bytes());
        put(at + 8, &bytes.to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    out.extend_from_slice(config.cmdline.as_bytes());
    out.push(0);
    (out.len() as u64 <= placement.dtb.len()).then_some(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::{plan, tests::config};
    use crate::manifest::{Format, Isa, Role};

    /// Makes a kernel that needs `room` bytes, with this much of it in the file.
    pub(crate) fn bzimage(room: u32, len: usize) -> Vec<u8> {
        let mut file = vec![0; 1024];
        file[SETUP_SECTORS] = 1;
        file[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
        file[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        file[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        file[RELOCATABLE] = 1;
        file[CMDLINE_SIZE..CMDLINE_SIZE + 4].copy_from_slice(&2047_u32.to_le_bytes());
        file[PREFERRED..PREFERRED + 8].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        file[INIT_SIZE..INIT_SIZE + 4].copy_from_slice(&room.to_le_bytes());
        file.resize(1024 + len, 0x5a);
        file
    }

    fn machine(kernel: Vec<u8>) -> VmConfig {
        VmConfig { isa: Isa::X86, role: Role::Primary, ..config(Format::Linux, kernel, Some(5000), 64 << 20) }
    }

    #[test]
    fn a_kernel_goes_where_it_likes_to_be_and_what_it_finds_above_it() {
        let config = machine(bzimage(0x20_0000, 4096));
        let placement = plan(&config).expect("there is room");
        assert_eq!((placement.entry, placement.kernel[0].bytes.len()), (Ipa::new(0x100_0000), 4096));
        assert!(placement.dtb.start() >= Ipa::new(0x120_0000));
        let memory = [(0, 0x9_f000, 1), (0x10_0000, 0x3f0_0000, 1)];
        let page = zero_page(&config, &placement, &memory, 0xf_1234).expect("short");
        let initrd = placement.initrd.expect("there is one");
        assert_eq!(word(&page, INITRD), Some(initrd.start().get() as u32));
        assert_eq!(word(&page, INITRD_SIZE), Some(5000));
        assert_eq!(word(&page, CMDLINE), Some(placement.dtb.start().get() as u32 + 4096));
        assert_eq!((page[E820_ENTRIES], word(&page, E820 + 20)), (2, Some(0x10_0000)));
        assert_eq!((word(&page, RSDP), page[LOADER]), (Some(0xf_1234), 0xff));
        assert_eq!(page[4096..], *b"console=ttyAMA0\0");
        assert_eq!(page[MAGIC..MAGIC + 4], *b"HdrS");
    }

    #[test]
    fn what_is_no_kernel_or_has_no_room_is_refused() {
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut kernel = bzimage(0x20_0000, 4096);
            change(&mut kernel);
            plan(&machine(kernel)).map(|_| ()).unwrap_err().to_string()
        };
        for (change, says) in [
            (&(|k: &mut Vec<u8>| k[MAGIC] = 0) as &dyn Fn(&mut Vec<u8>), "is no Linux bzImage"),
            (&|k| k[VERSION] = 0, "header that cannot be right"),
            (&|k| k[RELOCATABLE] = 0, "header that cannot be right"),
            (&|k| k.truncate(1024), "header that cannot be right"),
            (&|k| k[INIT_SIZE + 3] = 0x10, "where the VM has no memory"),
        ] {
            let error = refused(change);
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn no_header_makes_a_panic() {
        for len in 0..1100 {
            let kernel = bzimage(0x1000, 100)[..len.min(1124)].to_vec();
            let _ = plan(&machine(kernel));
        }
    }
}
