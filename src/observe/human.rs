//! Sizes and times for a reader's eye: three digits, one unit or two, never a space, so that a
//! column stays one field for `awk`. Programs read the JSON, which is exact.

/// `999B`, `1.2KiB`, `43MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n}B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.5 {
        value /= 1024.0;
        unit += 1;
    }
    format!("{}{}", three_digits(value), UNITS[unit])
}

/// Microseconds as `850us`, `1.2ms`, `3.4s`, and from a minute on as [`seconds`].
pub fn micros(n: u64) -> String {
    match n {
        0..1_000 => format!("{n}us"),
        1_000..999_500 => format!("{}ms", three_digits(n as f64 / 1e3)),
        999_500..60_000_000 => format!("{}s", three_digits(n as f64 / 1e6)),
        _ => seconds(n / 1_000_000),
    }
}

/// Seconds as their two greatest units: `12s`, `3m20s`, `2h5m`, `9d4h`.
pub fn seconds(n: u64) -> String {
    match n {
        0..60 => format!("{n}s"),
        60..3_600 => two(n / 60, "m", n % 60, "s"),
        3_600..86_400 => two(n / 3_600, "h", n % 3_600 / 60, "m"),
        _ => two(n / 86_400, "d", n % 86_400 / 3_600, "h"),
    }
}

fn two(great: u64, unit: &str, small: u64, lesser: &str) -> String {
    if small == 0 { format!("{great}{unit}") } else { format!("{great}{unit}{small}{lesser}") }
}

fn three_digits(value: f64) -> String {
    if value < 9.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_to_three_digits_and_a_unit() {
        for (n, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0KiB"),
            (10 * 1024 - 1, "10KiB"),
            (1_572_864, "1.5MiB"),
            (1024 * 1024 - 1, "1.0MiB"),
            (u64::MAX, "16EiB"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
    }

    #[test]
    fn times_show_their_greatest_units() {
        for (n, text) in [
            (0, "0us"),
            (999, "999us"),
            (1_200, "1.2ms"),
            (43_000, "43ms"),
            (999_499, "999ms"),
            (999_500, "1.0s"),
            (59_000_000, "59s"),
            (125_000_000, "2m5s"),
        ] {
            assert_eq!(micros(n), text, "{n}");
        }
        for (n, text) in [
            (0, "0s"),
            (60, "1m"),
            (200, "3m20s"),
            (7_500, "2h5m"),
            (86_400, "1d"),
            (86_400 * 9 + 4 * 3_600 + 7, "9d4h"),
        ] {
            assert_eq!(seconds(n), text, "{n}");
        }
    }
}
