//! Figures as a table, for a terminal and for a document.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::bench::record::{Memory, Record, Row};

/// Around the part of a document that is written by a run.
const BEGIN: &str = "<!-- begin of what `bench --out` writes -->";
const END: &str = "<!-- end of what `bench --out` writes -->";

/// A figure with as many digits as mean something.
pub(super) fn shown(figure: f64) -> String {
    match figure {
        f if f >= 100.0 => format!("{f:.0}"),
        f if f >= 1.0 => format!("{f:.2}"),
        f => format!("{f:.3}"),
    }
}

/// A ratio, or that there is none.
pub(super) fn ratio_shown(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

fn verdict(row: &Row) -> &'static str {
    match row.is_met() {
        Some(true) => "ok",
        Some(false) => "short",
        None => "",
    }
}

/// Title and figure of the first, ratios of the others, goal, verdict, flushes.
fn cells(row: &Row) -> Vec<String> {
    let figure = row.figure(0).map_or_else(|| "-".to_owned(), shown);
    let mut cells = vec![row.title.clone(), format!("{figure} {}", row.unit)];
    cells.extend((1..row.series.len()).map(|who| ratio_shown(row.ratio(who))));
    if row.goal.is_some() {
        cells.push(ratio_shown(row.goal));
        cells.push(verdict(row).to_owned());
    }
    let flushes =
        row.series.iter().map(|s| s.flushes.map_or_else(|| "-".to_owned(), |flushes| flushes.to_string()));
    cells.push(flushes.collect::<Vec<_>>().join(" / "));
    cells
}

fn heads(row: &Row) -> Vec<String> {
    let mut heads = vec!["test".to_owned()];
    heads.extend(row.series.iter().map(|series| series.name.clone()));
    if row.goal.is_some() {
        heads.extend(["goal".to_owned(), String::new()]);
    }
    heads.push("flushes of each".to_owned());
    heads
}

/// Prints rows that compare the same.
fn print_rows(rows: &[Row]) {
    let Some(first) = rows.first() else { return };
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(heads(first));
    for row in rows {
        table.add_row(cells(row));
    }
    println!("\nratios to {}, more is better, also for times", first.series.first().map_or("", |s| &s.name));
    for line in table.to_string().lines() {
        println!("{}", line.trim_end());
    }
}

fn memory_line(memory: &Memory) -> String {
    let Memory { written_mib, listed_mib, goal_mib } = memory;
    let verdict = if written_mib.max(listed_mib) <= goal_mib { "ok" } else { "short" };
    format!(
        "The daemon, 1 GiB in 100,000 files: {written_mib} MiB written, {listed_mib} MiB mounted again and listed; \
         goal {goal_mib} MiB, {verdict}."
    )
}

/// Prints all of a run.
pub(super) fn print(record: &Record) {
    print_rows(&record.rows);
    print_rows(&record.quorum);
    if let Some(memory) = &record.memory {
        println!("\n{}", memory_line(memory));
    }
}

fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn markdown_rows(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let heads = heads(first);
    let mut text = line(&heads);
    text.push_str(&line(
        &heads
            .iter()
            .enumerate()
            .map(|(at, _)| if at == 0 { "---" } else { "---:" }.to_owned())
            .collect::<Vec<_>>(),
    ));
    for row in rows {
        text.push_str(&line(&cells(row).iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>()));
    }
    text
}

/// All of a run in Markdown.
pub(super) fn markdown(record: &Record) -> String {
    let machine = &record.machine;
    let form = if record.is_short { "short form, " } else { "" };
    let mut text = format!(
        "{} rounds after a warm-up, {form}{}: {} cores, {} MiB of memory, Linux {}. Ratios to the first column, more is \
         better, also for times.\n\n",
        record.rounds, record.date, machine.cores, machine.memory_mib, machine.kernel
    );
    text.push_str(&markdown_rows(&record.rows));
    if !record.quorum.is_empty() {
        text.push_str("\nA quorum of three keepers on the same disk, against one keeper:\n\n");
        text.push_str(&markdown_rows(&record.quorum));
    }
    if let Some(memory) = &record.memory {
        text.push_str(&format!("\n{}\n", memory_line(memory)));
    }
    text
}

/// Puts `text` between the marks of a document, or makes the document if there is none.
pub(super) fn put_into(document: &Path, text: &str) -> Result<()> {
    let old = match std::fs::read_to_string(document) {
        Ok(old) => old,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => format!("{BEGIN}\n{END}\n"),
        Err(error) => return Err(error).with_context(|| format!("read {}", document.display())),
    };
    let Some(new) = replaced(&old, text) else {
        bail!("{} lacks the lines {BEGIN:?} and {END:?}", document.display());
    };
    std::fs::write(document, new).with_context(|| format!("write {}", document.display()))
}

fn replaced(old: &str, text: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, END, markdown, put_into, replaced, shown};
    use crate::bench::record::tests::record;

    #[test]
    fn figures_have_as_many_digits_as_mean_something() {
        assert_eq!(
            (shown(1234.5), shown(12.345), shown(0.123_45)),
            ("1234".into(), "12.35".into(), "0.123".into())
        );
    }

    #[test]
    fn every_line_of_a_table_has_as_many_cells() {
        let text = markdown(&record("a|b", 0.4));
        let counts: Vec<usize> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.replace("\\|", "").matches('|').count())
            .collect();
        assert_eq!(counts.len(), 3);
        assert!(counts.iter().all(|n| *n == counts[0]), "{text}");
        assert!(text.contains("| 0.40 | 0.50 | short |"), "{text}");
        assert!(text.contains("140 MiB written"), "{text}");
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let old = format!("# Title\n{BEGIN}\nold\n{END}\nand more\n");
        let new = replaced(&old, "new\n").unwrap();
        assert_eq!(new, format!("# Title\n{BEGIN}\n\nnew\n\n{END}\nand more\n"));
        assert_eq!(replaced(&new, "new").unwrap(), new, "a second time changes nothing");
    }

    #[test]
    fn a_document_without_the_marks_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("speed.md");
        std::fs::write(&file, "prose").unwrap();
        assert!(put_into(&file, "table").is_err());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "prose");
    }
}
