//! When a server counts as up or down: pure, and told of each answer.

/// What a probe's answers amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub is_up: bool,
    /// Answers in a row that speak against `is_up`.
    against: u32,
}

impl Standing {
    pub const fn new(is_up: bool) -> Standing {
        Standing { is_up, against: 0 }
    }

    /// Notes an answer; tells whether that changed the standing. It changes after `rise` good answers in a row, or after
    /// `fall` bad ones.
    pub fn note(&mut self, is_good: bool, rise: u32, fall: u32) -> bool {
        if is_good == self.is_up {
            self.against = 0;
            return false;
        }
        self.against += 1;
        if self.against < if is_good { rise } else { fall } {
            return false;
        }
        *self = Standing::new(is_good);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rise_and_fall() {
        let mut standing = Standing::new(true);
        let answers = "+--+---+-++-+---";
        let seen: String = answers
            .chars()
            .map(|answer| {
                standing.note(answer == '+', 2, 3);
                if standing.is_up { 'u' } else { 'd' }
            })
            .collect();
        assert_eq!(seen, "uuuuuudddduuuuud");
    }

    proptest! {
        #[test]
        fn it_is_what_the_last_answers_in_a_row_say(
            answers in prop::collection::vec(any::<bool>(), 1..60),
            rise in 1..5_u32,
            fall in 1..5_u32,
        ) {
            let mut standing = Standing::new(true);
            let mut expected = true;
            for count in 1..=answers.len() {
                standing.note(answers[count - 1], rise, fall);
                let run = |good: bool| answers[..count].iter().rev().take_while(|answer| **answer == good).count() as u32;
                if run(true) >= rise {
                    expected = true;
                } else if run(false) >= fall {
                    expected = false;
                }
                prop_assert_eq!(standing.is_up, expected);
            }
        }
    }
}
