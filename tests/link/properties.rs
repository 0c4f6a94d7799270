//! What holds under any sequence: `segment` says what, in its assertions.

use proptest::prelude::*;

use crate::segment;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_day_breaks_the_link(day in proptest::collection::vec(any::<u8>(), 0..600)) {
        segment::run(&day);
    }

    /// Fewer frames of chance, more of the protocol.
    #[test]
    fn no_busy_day_breaks_the_link(
        day in proptest::collection::vec((1..8_u8, proptest::array::uniform5(any::<u8>())), 0..120),
    ) {
        let bytes: Vec<u8> = day
            .into_iter()
            .flat_map(|(what, more)| {
                let operands = [0, 4, 5, 3, 3, 1, 2, 0][usize::from(what)];
                std::iter::once(what).chain(more.into_iter().take(operands))
            })
            .collect();
        segment::run(&bytes);
    }
}
