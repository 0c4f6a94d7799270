//! Numbers for a human's eye.

use std::time::Duration;

const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];

/// Three significant digits and a decimal unit: `0`, `7.5`, `812`, `1.23M`.
pub fn short(value: f64) -> String {
    let mut value = if value.is_finite() { value.max(0.0) } else { 0.0 };
    let mut unit = 0;
    // From 999.5 on, three digits would round up to 1000.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 || unit == 0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let text = if unit == 0 { text.strip_suffix(".0").unwrap_or(&text) } else { &text };
    format!("{text}{}", UNITS[unit])
}

/// Bits per second from bytes per second.
pub fn bits(bytes_per_second: f64) -> String {
    format!("{}bit/s", short(bytes_per_second * 8.0))
}

/// The two largest units: `42s`, `3m07s`, `2h04m`, `5d03h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortens() {
        let rows = [
            (0.0, "0"),
            (7.46, "7.5"),
            (812.0, "812"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1_234.0, "1.23k"),
            (45_678.0, "45.7k"),
            (999_999.0, "1.00M"),
            (12.4e9, "12.4G"),
            (f64::NAN, "0"),
            (-1.0, "0"),
        ];
        for (value, text) in rows {
            assert_eq!(short(value), text, "{value}");
        }
        assert_eq!(bits(125_000.0), "1.00Mbit/s");
    }

    #[test]
    fn durations() {
        let rows = [(0, "0s"), (59, "59s"), (187, "3m07s"), (7440, "2h04m"), (442_900, "5d03h")];
        for (seconds, text) in rows {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }
}
