//! What a move between a register and memory does: for the few addresses where the hypervisor carries it out.
//!
//! These are the forms that compilers make of a volatile access (SDM 2B, "MOV" and "MOVZX"). The address is not decoded: the
//! second stage has told it. So prefixes of segments are passed over.

/// A move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// From where to where.
    pub what: What,
    /// The bytes of memory: 1, 2, 4 or 8.
    pub bytes: u8,
    /// The instruction's bytes.
    pub len: u8,
}

/// From where to where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// From memory to the register of this number, of which the rest becomes 0. It is not the stack pointer.
    Load(u8),
    /// From the low end of the register of this number to memory.
    Store(u8),
    /// The low end of this value to memory.
    StoreValue(u64),
}

/// What a segment of code holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// Instructions whose addresses and operands have 32 bits where no prefix says otherwise.
    Bits32,
    /// Instructions of 64-bit mode.
    Bits64,
}

/// The longest instruction.
pub const LONGEST: usize = 15;
/// The number of the stack pointer.
const RSP: u8 = 4;

/// Decodes the instruction that `bytes` begin with; `None` where it is anything else than a move, or not all there.
pub fn decode(bytes: &[u8], code: Code) -> Option<Move> {
    const OPERAND_SIZE: u8 = 0x66;
    const ADDRESS_SIZE: u8 = 0x67;
    const REX: u8 = 0x40;
    const REX_W: u8 = 1 << 3;
    const REX_R: u8 = 1 << 2;
    let bytes = bytes.get(..LONGEST).unwrap_or(bytes);
    let (mut at, mut is_short, mut is_near) = (0, false, false);
    loop {
        match *bytes.get(at)? {
            OPERAND_SIZE => is_short = true,
            // In 32-bit code addresses of 16 bits have forms of their own.
            ADDRESS_SIZE if code == Code::Bits32 => return None,
            ADDRESS_SIZE => is_near = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
            _ => break,
        }
        at += 1;
    }
    let rex = Some(bytes[at]).filter(|byte| code == Code::Bits64 && byte & 0xf0 == REX);
    let is_set = |bit| rex.is_some_and(|rex| rex & bit != 0);
    at += usize::from(rex.is_some());
    let size = if is_set(REX_W) {
        8
    } else if is_short {
        2
    } else {
        4
    };
    let opcode = *bytes.get(at)?;
    at += 1;
    if matches!(opcode, 0xa1 | 0xa3) {
        let offset = if code == Code::Bits64 && !is_near { 8 } else { 4 };
        let what = if opcode == 0xa1 { What::Load(0) } else { What::Store(0) };
        return finish(bytes, what, size, size, at + offset);
    }
    let extended = if opcode == 0x0f { Some(*bytes.get(at)?) } else { None };
    at += usize::from(extended.is_some());
    let form = *bytes.get(at)?;
    let register = form >> 3 & 7 | if is_set(REX_R) { 8 } else { 0 };
    let end = at + 1 + address_bytes(form, bytes.get(at + 1).copied())?;
    match (opcode, extended) {
        // Without the prefix these are the second bytes of the first four registers.
        (0x88, None) if rex.is_none() && register >= RSP => None,
        (0x88, None) => finish(bytes, What::Store(register), 1, 1, end),
        (0x89, None) => finish(bytes, What::Store(register), size, size, end),
        (0x8b, None) => finish(bytes, What::Load(register), size, size, end),
        (0x0f, Some(0xb6)) => finish(bytes, What::Load(register), 1, size, end),
        (0x0f, Some(0xb7)) => finish(bytes, What::Load(register), 2, size, end),
        (0xc6, None) if register & 7 == 0 => {
            finish(bytes, What::StoreValue((*bytes.get(end)?).into()), 1, 1, end + 1)
        }
        (0xc7, None) if register & 7 == 0 && size == 2 => {
            let value = u16::from_le_bytes(bytes.get(end..end + 2)?.try_into().ok()?);
            finish(bytes, What::StoreValue(value.into()), 2, 2, end + 2)
        }
        (0xc7, None) if register & 7 == 0 => {
            // One of 64 bits has the sign of these 32.
            let value = i32::from_le_bytes(bytes.get(end..end + 4)?.try_into().ok()?);
            finish(bytes, What::StoreValue(value as u64), size, size, end + 4)
        }
        _ => None,
    }
}

/// Makes a move of `bytes` of memory, whose register has `of` bytes, out of an instruction that ends at `end`. A load that
/// leaves a part of its register as it was is not one of these.
fn finish(instruction: &[u8], what: What, bytes: u8, of: u8, end: usize) -> Option<Move> {
    let is_kept = match what {
        What::Load(to) => of < 4 || to == RSP,
        What::Store(_) | What::StoreValue(_) => false,
    };
    (!is_kept && end <= instruction.len()).then_some(Move { what, bytes, len: end as u8 })
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
    use Code::{Bits32, Bits64};
    use What::{Load, Store, StoreValue};

    /// Checks that `bytes` are a move, with anything behind it, and no move where they are cut off anywhere.
    fn good(bytes: &[u8], code: Code, what: What, width: u8) {
        let expected = Some(Move { what, bytes: width, len: bytes.len() as u8 });
        assert_eq!(decode(bytes, code), expected, "{bytes:x?}");
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end], code), None, "cut off: {:x?}", &bytes[..end]);
        }
        for behind in [0x00, 0x66, 0xcc, 0xff] {
            let longer = [bytes, &[behind; 16]].concat();
            assert_eq!(decode(&longer, code), expected, "{longer:x?}");
        }
    }

    #[test]
    fn what_linux_does_to_its_apic_is_decoded() {
        good(&[0x8b, 0x04, 0x25, 0x20, 0xd0, 0x5f, 0xff], Bits64, Load(0), 4);
        good(&[0x89, 0x34, 0x25, 0x00, 0xd3, 0x5f, 0xff], Bits64, Store(6), 4);
        good(&[0x44, 0x89, 0x87, 0x00, 0xd0, 0x5f, 0xff], Bits64, Store(8), 4);
        good(&[0x89, 0x47, 0x10], Bits64, Store(0), 4);
        good(&[0x8b, 0x00], Bits64, Load(0), 4);
        good(&[0xc7, 0x04, 0x25, 0xb0, 0xd0, 0x5f, 0xff, 0, 0, 0, 0], Bits64, StoreValue(0), 4);
        good(&[0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x9a, 6, 0, 0], Bits32, StoreValue(0x69a), 4);
        good(&[0xa3, 0x00, 0x03, 0xe0, 0xfe], Bits32, Store(0), 4);
        good(&[0xa1, 0, 0, 0, 0, 0, 0, 0, 0], Bits64, Load(0), 4);
    }

    #[test]
    fn every_width_has_its_moves() {
        // mov rax, [rdi]; mov [rdi], r15; mov r12, [rsp + 8]; mov qword ptr [rax], -2; movabs rax, [...]
        good(&[0x48, 0x8b, 0x07], Bits64, Load(0), 8);
        good(&[0x4c, 0x89, 0x3f], Bits64, Store(15), 8);
        good(&[0x4c, 0x8b, 0x64, 0x24, 0x08], Bits64, Load(12), 8);
        good(&[0x48, 0xc7, 0x00, 0xfe, 0xff, 0xff, 0xff], Bits64, StoreValue(-2_i64 as u64), 8);
        good(&[0x48, 0xa1, 0, 0, 0x10, 9, 0, 0, 0, 0], Bits64, Load(0), 8);
        good(&[0x48, 0xa3, 0, 0, 0x10, 9, 0, 0, 0, 0], Bits64, Store(0), 8);
        // mov [rdx], r9d; mov eax, [...] with a short address
        good(&[0x44, 0x89, 0x0a], Bits64, Store(9), 4);
        good(&[0x67, 0xa1, 0, 0, 0x10, 9], Bits64, Load(0), 4);
        good(&[0x67, 0x89, 0x02], Bits64, Store(0), 4);
        // movzx eax, word ptr [rdi]; movzx r8, word ptr [rdi]; mov [rdi], cx; mov word ptr [rdi], 0x1234
        good(&[0x0f, 0xb7, 0x07], Bits64, Load(0), 2);
        good(&[0x4c, 0x0f, 0xb7, 0x07], Bits64, Load(8), 2);
        good(&[0x66, 0x89, 0x0f], Bits64, Store(1), 2);
        good(&[0x66, 0xc7, 0x07, 0x34, 0x12], Bits64, StoreValue(0x1234), 2);
        // movzx eax, byte ptr [rdi]; mov [rdi], dl; mov [rdi], sil; mov byte ptr [rdi], 0xff
        good(&[0x0f, 0xb6, 0x07], Bits64, Load(0), 1);
        good(&[0x88, 0x17], Bits64, Store(2), 1);
        good(&[0x40, 0x88, 0x37], Bits64, Store(6), 1);
        good(&[0xc6, 0x07, 0xff], Bits64, StoreValue(0xff), 1);
        // The same in 32-bit code, where 0x48 is no prefix.
        good(&[0x0f, 0xb7, 0x07], Bits32, Load(0), 2);
        good(&[0x66, 0x89, 0x0f], Bits32, Store(1), 2);
        good(&[0x8b, 0x40, 0x50], Bits32, Load(0), 4);
        assert_eq!(decode(&[0x48, 0x8b, 0x07], Bits32), None);
    }

    #[test]
    fn every_form_of_an_address_has_its_length() {
        for rex in [0x40, 0x41, 0x42, 0x48, 0x4f_u8] {
            for form in 0..0xc0_u8 {
                let (mode, rm) = (form >> 6, form & 7);
                let sibs: &[u8] = if rm == 4 { &[0x20, 0x25, 0xe5, 0x9c] } else { &[] };
                let displacements = |base| match mode {
                    0 if base == 5 => 4, // relative to RIP, where it is not in a second byte
                    0 => 0,
                    1 => 1,
                    _ => 4,
                };
                let register = form >> 3 & 7 | rex << 1 & 8;
                if register == RSP {
                    assert_eq!(decode(&[rex, 0x8b, form, 0x20, 0, 0, 0, 0, 0], Bits64), None);
                    continue;
                }
                let width = if rex & 8 != 0 { 8 } else { 4 };
                if sibs.is_empty() {
                    let displacement = [1, 2, 3, 4];
                    let bytes = [&[rex, 0x8b, form][..], &displacement[..displacements(rm)]].concat();
                    good(&bytes, Bits64, Load(register), width);
                }
                for &sib in sibs {
                    let displacement = [1, 2, 3, 4];
                    let bytes =
                        [&[rex, 0x8b, form, sib][..], &displacement[..displacements(sib & 7)]].concat();
                    good(&bytes, Bits64, Load(register), width);
                }
            }
        }
    }

    #[test]
    fn prefixes_of_segments_change_nothing_and_an_instruction_has_an_end() {
        for segment in [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65] {
            good(&[segment, 0x48, 0x89, 0x07], Bits64, Store(0), 8);
            good(&[segment, 0x66, 0x89, 0x07], Bits32, Store(0), 2);
        }
        let of = |prefixes| [vec![0x3e; prefixes], vec![0x89, 0x07]].concat();
        good(&of(LONGEST - 2), Bits64, Store(0), 4);
        assert_eq!(decode(&of(LONGEST - 1), Bits64), None, "the CPU takes no longer one");
    }

    #[test]
    fn what_is_no_such_move_is_not_taken_for_one() {
        for bytes in [
            &[0x66, 0x8b, 0x00][..], // keeps a part of its register
            &[0x66, 0xa1, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x66, 0x0f, 0xb6, 0x00],
            &[0x8a, 0x00],
            &[0x88, 0x27], // from AH
            &[0x8b, 0x20], // to ESP
            &[0x8b, 0xc0], // between registers
            &[0x0f, 0xb7, 0xc0],
            &[0x0f, 0xbe, 0x00], // with its sign
            &[0x63, 0x00],
            &[0xc7, 0x08, 0, 0, 0, 0],
            &[0xc6, 0x08, 0],
            &[0x87, 0x00],
            &[0x01, 0x00],
            &[0xf0, 0x89, 0x00],
            &[0xf2, 0x89, 0x00],
            &[0xf3, 0x89, 0x00],
            &[0x48, 0x66, 0x89, 0x00], // a prefix that comes too late
            &[0xc5, 0xf8, 0x11, 0x00],
            &[0x0f],
            &[],
            &[0x44],
            &[0x66; 15],
        ] {
            assert_eq!(decode(bytes, Bits64), None, "{bytes:x?}");
        }
        assert_eq!(decode(&[0x67, 0x89, 0x02], Bits32), None, "an address of 16 bits");
    }

    #[test]
    fn no_bytes_make_it_panic_or_go_beyond_them() {
        let mut seed = 1_u64;
        let mut bytes = [0; LONGEST];
        for round in 0..200_000_usize {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            bytes[round % LONGEST] = (seed >> 33) as u8;
            for code in [Bits32, Bits64] {
                let part = &bytes[..(seed >> 60) as usize % (LONGEST + 1)];
                assert!(decode(part, code).is_none_or(|it| usize::from(it.len) <= part.len() && it.len > 1));
            }
        }
    }
}
