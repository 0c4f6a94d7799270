//! Durations as the configuration writes them: `500ms`, `2s`, `5m`, `2h4m`, `31d`.

use std::time::Duration;

/// Units and their milliseconds, from the largest.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Reads whole numbers with units, the larger unit first, each at most once.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut units, mut millis) = (text, &UNITS[..], 0_u64);
    while !rest.is_empty() {
        let (number, behind) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, behind) = behind.split_at(behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len()));
        let at = units.iter().position(|(name, _)| *name == unit)?;
        millis = millis.checked_add(number.parse::<u64>().ok()?.checked_mul(units[at].1)?)?;
        (rest, units) = (behind, &units[at + 1..]);
    }
    (!text.is_empty()).then_some(Duration::from_millis(millis))
}

/// Writes what [`parse_duration`] reads; parts of a millisecond are left out.
pub fn format_duration(duration: Duration) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, size) in UNITS {
        if millis >= size {
            text.push_str(&format!("{}{name}", millis / size));
            millis %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_operators_write() {
        let rows = [
            ("500ms", Some(500)),
            ("2s", Some(2000)),
            ("5m", Some(300_000)),
            ("2h4m", Some(7_440_000)),
            ("1s500ms", Some(1500)),
            ("31d", Some(2_678_400_000)),
            ("0s", Some(0)),
            ("90m", Some(5_400_000)),
            ("", None),
            ("5", None),
            ("m", None),
            ("5 m", None),
            ("-5m", None),
            ("1.5s", None),
            ("4m2h", None),
            ("1m1m", None),
            ("5min", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
        ];
        for (text, millis) in rows {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(millis in prop_oneof![any::<u64>(), 0..10_000_000_u64]) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }

        #[test]
        fn rubbish_is_refused_without_a_panic(text in "[0-9dhms .é-]{0,12}") {
            if let Some(duration) = parse_duration(&text) {
                prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
            }
        }
    }
}
