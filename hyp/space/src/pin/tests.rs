use super::{ADDRESS, Terms};
use frames::{Hold, Order, Owner};
use types::{FRAME_SIZE, Ipa, Pa};

#[test]
fn a_pin_says_all_that_was_written_down_in_it() {
    let addresses = [0, FRAME_SIZE, ADDRESS ^ FRAME_SIZE, ADDRESS];
    for owner in [0, 1, 0x9abc, u16::MAX].map(Owner) {
        for order in [Order::FRAME, Order::FOLIO, Order::LARGEST] {
            for hold in [Hold::Read, Hold::Write] {
                for (pa, ipa) in addresses.into_iter().zip(addresses.into_iter().rev()) {
                    let pin = Terms::new(owner, order, hold).pin(Pa::new(pa), Ipa::new(ipa));
                    assert_eq!((pin.pa().get(), pin.ipa().get()), (pa, ipa));
                    assert_eq!((pin.owner(), pin.bytes(), pin.hold()), (owner, order.bytes(), hold));
                }
            }
        }
    }
}
