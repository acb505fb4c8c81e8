//! What a recorded instruction says, in the model's words.

use model::{Op, Reach, Tlbi};
use trace::Record;
use types::{Height, Ipa, Range, Vmid};

/// Base-2 logarithm of the granule of every guest's tables.
const GRANULE: u32 = 12;

/// Returns what an AArch64 TLB invalidation says; `None` where its code is none.
pub(crate) fn tlbi(record: &Record) -> Option<Tlbi> {
    use trace::Op as Code;
    let [operand, vttbr, _] = record.operands;
    let code = Code::of(record.small)?;
    let op = match code {
        Code::Vmalle1 => Op::Vmalle1,
        Code::Vmalle1is => Op::Vmalle1is,
        Code::Vmalls12e1 => Op::Vmalls12e1,
        Code::Invept => return None,
        Code::Vmalls12e1is => Op::Vmalls12e1is,
        Code::Alle1 => Op::Alle1,
        Code::Alle1is => Op::Alle1is,
        Code::Ipas2e1 => Op::Ipas2e1,
        Code::Ipas2e1is | Code::Ripas2e1is => Op::Ipas2e1is,
        Code::Ipas2le1is | Code::Ripas2le1is => Op::Ipas2le1is,
    };
    let (range, hint) = match code {
        Code::Ripas2e1is | Code::Ripas2le1is => by_range(operand),
        Code::Ipas2e1 | Code::Ipas2e1is | Code::Ipas2le1is => by_address(operand),
        _ => (None, None),
    };
    Some(Tlbi { op, vmid: vmid(vttbr), range, hint })
}

/// Returns the VMID in a value of VTTBR_EL2.
pub(crate) const fn vmid(vttbr: u64) -> Vmid {
    Vmid((vttbr >> 48) as u16)
}

/// Returns whom a barrier is for; `None` where its code is none.
pub(crate) fn reach(record: &Record) -> Option<Reach> {
    use trace::Reach as Code;
    Some(match Code::of(record.small)? {
        Code::Nsh => Reach::Nsh,
        Code::Ishst => Reach::Ishst,
        Code::Ish => Reach::Ish,
        Code::Sy => Reach::Sy,
    })
}

/// An operand by address: the address from bit 12 on, and granule and level from bit 44 on (DDI 0487, C5.5).
fn by_address(operand: u64) -> (Option<Range>, Option<Height>) {
    let at = (operand & ((1 << 36) - 1)) << 12;
    let ttl = operand >> 44 & 0xf;
    let level = if ttl == 0 { 0 } else { ttl & 3 };
    (Range::with_len(Ipa::new(at), 1 << GRANULE).ok(), height(level))
}

/// An operand by range: base in granules; level, number, scale, granule (DDI 0487, C5.5).
fn by_range(operand: u64) -> (Option<Range>, Option<Height>) {
    let units = (operand >> 39 & 31) + 1;
    let granules = units << (5 * (operand >> 44 & 3) + 1);
    let base = (operand & ((1 << 37) - 1)) << GRANULE;
    (Range::with_len(Ipa::new(base), granules << GRANULE).ok(), height(operand >> 37 & 3))
}

fn height(level: u64) -> Option<Height> {
    (level != 0).then(|| Height::new(3 - level as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use trace::Kind;
    use types::CpuId;

    fn of(op: trace::Op, operand: u64) -> Tlbi {
        let operands = [operand, 7 << 48 | 0x4000_0000, 0];
        tlbi(&Record { number: 0, cpu: CpuId::BOOT, kind: Kind::Tlbi, small: op as u8, operands })
            .expect("a code")
    }

    #[test]
    fn an_operand_by_address_is_a_page_with_a_hint() {
        let tlbi = of(trace::Op::Ipas2le1is, 0x4_0200 | 0b0110 << 44);
        assert_eq!((tlbi.op, tlbi.vmid), (Op::Ipas2le1is, Vmid(7)));
        assert_eq!(tlbi.range, Range::with_len(Ipa::new(0x4020_0000), 4096).ok());
        assert_eq!(tlbi.hint, Some(Height::new(1)));
        assert_eq!(of(trace::Op::Ipas2e1is, 0x4_0200).hint, None);
    }

    #[test]
    fn an_operand_by_range_says_how_many_granules() {
        // NUM 2, SCALE 1: 3 × 64 granules; level 3; granule 4 KiB.
        let tlbi = of(trace::Op::Ripas2e1is, 0x4_0200 | 3 << 37 | 2 << 39 | 1 << 44 | 1 << 46);
        assert_eq!(tlbi.op, Op::Ipas2e1is);
        assert_eq!(tlbi.range, Range::with_len(Ipa::new(0x4020_0000), 3 * 64 * 4096).ok());
        assert_eq!(tlbi.hint, Some(Height::PAGE));
    }
}
