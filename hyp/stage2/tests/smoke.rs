//! Map and translate.
use model::Arena;
use stage2::*;
use types::*;
use vmsa::*;

struct Quiet;
impl Invalidate for Quiet {
    type Pending = ();
    fn begin(&self, _: Work) {}
    fn complete(&self, (): ()) {}
}

#[test]
fn smoke() {
    let arena = Arena::new(16 << 20);
    let layout = Layout::<Granule4K>::choose(40, Height::new(2), 5, Controls::empty()).unwrap();
    let tree = Tree::new(Vmsa::new(Features::empty()), layout.geometry(), Bbm::Level0, &arena).unwrap();
    let epoch = EntryEpoch::new();
    let section = epoch.enter(CpuId::BOOT);
    let view = tree.open(&section);
    let range = Range::new(Ipa::new(0x4000_0000 - 0x3000), Ipa::new(0x8020_1000)).unwrap();
    let mut m = Mapping {
        range,
        pa: Pa::new(0x1_4000_0000 - 0x3000),
        attrs: Attrs::RAM,
        largest: Height::new(2),
        why: Why::Alignment,
    };
    loop {
        let next = view.map(&Quiet, &m).unwrap();
        if next == m.range.end() {
            break;
        }
        m.pa = m.pa.wrapping_add(next.get() - m.range.start().get());
        m.range = Range::new(next, range.end()).unwrap();
    }
    println!("{:?}", tree.census());
    for a in [0x3fff_d000u64, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, 0x8020_0fff] {
        assert_eq!(view.translate(Ipa::new(a)).pa(Ipa::new(a)), Some(Pa::new(a + 0x1_0000_0000)));
    }
    assert_eq!(view.translate(Ipa::new(0x8020_1000)).pa(Ipa::new(0x8020_1000)), None);
}
