//! Printing: JSON or a table, and names from strangers made safe for a terminal.

use serde::Serialize;

use crate::exit::{Context, Failure};

/// Prints a value as one JSON document.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).doing("encode JSON")?;
    line(&text);
    Ok(())
}

/// Prints a line; a reader that went away (`| head`) is no error.
pub(crate) fn line(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _closed = writeln!(out, "{text}");
}

/// Prints rows under a header.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)).collect::<Vec<_>>());
    }
    for text in table.to_string().lines() {
        line(text.trim_end());
    }
}

/// A text without control characters: a name must not move the cursor.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Bytes for people: 17 B, 1.5 KiB, 8.0 GiB.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(8 << 30), "8.0 GiB");
    }

    #[test]
    fn a_name_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
