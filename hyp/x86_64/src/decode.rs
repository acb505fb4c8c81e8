//! What a move of 32 bits between a register and memory does: for the few addresses where the hypervisor carries it out.
//!
//! These are the forms that compilers make of a volatile access (SDM 2B, "MOV"). The address is not decoded: the second stage
//! has told it.

/// A move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// From where to where.
    pub what: What,
    /// The instruction's bytes.
    pub len: u8,
}

/// From where to where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// From memory to the register of this number, whose upper half becomes 0.
    Load(u8),
    /// From the register of this number to memory.
    Store(u8),
    /// This value to memory.
    StoreValue(u32),
}

/// Decodes an instruction of 32-bit or, where it `is_wide`, of 64-bit code; `None` where it is anything else.
pub fn decode(bytes: &[u8], is_wide: bool) -> Option<Move> {
    const REX: u8 = 0x40;
    const REX_W: u8 = 1 << 3;
    const REX_R: u8 = 1 << 2;
    let rex = bytes.first().copied().filter(|byte| is_wide && byte & 0xf0 == REX);
    if rex.is_some_and(|rex| rex & REX_W != 0) {
        return None; // 64 bits
    }
    let at = usize::from(rex.is_some());
    let opcode = *bytes.get(at)?;
    if matches!(opcode, 0xa1 | 0xa3) {
        let len = at + 1 + if is_wide { 8 } else { 4 };
        let what = if opcode == 0xa1 { What::Load(0) } else { What::Store(0) };
        return (bytes.len() >= len).then_some(Move { what, len: len as u8 });
    }
    let form = *bytes.get(at + 1)?;
    let register = form >> 3 & 7 | if rex.is_some_and(|rex| rex & REX_R != 0) { 8 } else { 0 };
    let address = at + 2;
    let end = address + address_bytes(form, bytes.get(address).copied())?;
    let (what, len) = match opcode {
        0x8b => (What::Load(register), end),
        0x89 => (What::Store(register), end),
        0xc7 if register & 7 == 0 => {
            let value = bytes.get(end..end + 4)?.try_into().ok()?;
            (What::StoreValue(u32::from_le_bytes(value)), end + 4)
        }
        _ => return None,
    };
    (bytes.len() >= len).then_some(Move { what, len: len as u8 })
}

/// Returns how many bytes of an address follow a ModRM byte; `None` where it names a register (SDM 2A, 2.1.5).
fn address_bytes(form: u8, sib: Option<u8>) -> Option<usize> {
    let (mode, rm) = (form >> 6, form & 7);
    let has_sib = rm == 4;
    let base = if has_sib { sib? & 7 } else { rm };
    let displacement = match mode {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        2 => 4,
        _ => return None,
    };
    Some(usize::from(has_sib) + displacement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_does_to_its_apic_is_decoded() {
        for (bytes, is_wide, what) in [
            (&[0x8b, 0x04, 0x25, 0x20, 0xd0, 0x5f, 0xff][..], true, What::Load(0)),
            (&[0x89, 0x34, 0x25, 0x00, 0xd3, 0x5f, 0xff], true, What::Store(6)),
            (&[0x44, 0x89, 0x87, 0x00, 0xd0, 0x5f, 0xff], true, What::Store(8)),
            (&[0x89, 0x47, 0x10], true, What::Store(0)),
            (&[0x8b, 0x00], true, What::Load(0)),
            (&[0xc7, 0x04, 0x25, 0xb0, 0xd0, 0x5f, 0xff, 0, 0, 0, 0], true, What::StoreValue(0)),
            (&[0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x9a, 6, 0, 0], false, What::StoreValue(0x69a)),
            (&[0xa3, 0x00, 0x03, 0xe0, 0xfe], false, What::Store(0)),
            (&[0xa1, 0, 0, 0, 0, 0, 0, 0, 0], true, What::Load(0)),
        ] {
            assert_eq!(decode(bytes, is_wide), Some(Move { what, len: bytes.len() as u8 }), "{bytes:x?}");
            assert_eq!(decode(&bytes[..bytes.len() - 1], is_wide), None, "cut off");
            let mut longer = bytes.to_vec();
            longer.extend([0xcc; 3]);
            assert_eq!(decode(&longer, is_wide).map(|it| usize::from(it.len)), Some(bytes.len()));
        }
    }

    #[test]
    fn what_is_no_such_move_is_not_taken_for_one() {
        for bytes in [
            &[0x48, 0x8b, 0x00][..], // 64 bits
            &[0x66, 0x8b, 0x00],     // 16 bits
            &[0x8a, 0x00],           // 8 bits
            &[0x8b, 0xc0],           // between registers
            &[0xc7, 0x08, 0, 0, 0, 0],
            &[0x87, 0x00],
            &[],
            &[0x44],
        ] {
            assert_eq!(decode(bytes, true), None, "{bytes:x?}");
        }
    }
}
