//! What a run says while it goes on, and the table it ends with.

use std::fmt::Display;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Steps with their times, and facts worth a row.
pub struct Report {
    title: String,
    rows: Vec<(String, String, Option<Duration>)>,
    began: Instant,
}

impl Report {
    /// Begins a report.
    #[must_use]
    pub fn new(title: &str) -> Self {
        println!("{title}");
        Report { title: title.to_owned(), rows: Vec::new(), began: Instant::now() }
    }

    /// Does one step under a progress bar; `work` answers the fact for the table.
    pub fn step<T: Display, E>(
        &mut self,
        what: &str,
        total: u64,
        work: impl FnOnce(&ProgressBar) -> Result<T, E>,
    ) -> Result<(), E> {
        let bar = bar(what, total);
        let began = Instant::now();
        let result = work(&bar);
        let took = began.elapsed();
        bar.finish_and_clear();
        match result {
            Ok(fact) => {
                println!("  {what}: {fact} ({})", seconds(took));
                self.rows.push((what.to_owned(), fact.to_string(), Some(took)));
                Ok(())
            }
            Err(e) => {
                println!("  {what}: FAILED after {}", seconds(took));
                Err(e)
            }
        }
    }

    /// A fact without a time of its own.
    pub fn fact(&mut self, what: &str, fact: impl Display) {
        println!("  {what}: {fact}");
        self.rows.push((what.to_owned(), fact.to_string(), None));
    }

    /// Prints the closing table.
    pub fn close(self) {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        for (what, fact, took) in &self.rows {
            table.add_row([what.clone(), shortened(fact), took.map_or_else(String::new, seconds)]);
        }
        table.add_row(["in all", "", seconds(self.began.elapsed()).as_str()]);
        let text = table.to_string();
        let wide = text.lines().map(|line| line.trim_end().chars().count()).max().unwrap_or(0);
        println!("\n {}\n {}", self.title, "─".repeat(wide));
        for line in text.lines() {
            println!("{}", line.trim_end());
        }
    }
}

/// What fits into a table; the whole was printed when it happened.
fn shortened(fact: &str) -> String {
    const CHARS_MAX: usize = 60;
    if fact.chars().count() <= CHARS_MAX {
        return fact.to_owned();
    }
    fact.chars().take(CHARS_MAX - 1).chain(['…']).collect()
}

/// A bar on stderr (drawn only on a terminal); `total` 0 means unknown.
#[must_use]
pub fn bar(what: &str, total: u64) -> ProgressBar {
    let (bar, template) = if total == 0 {
        (ProgressBar::new_spinner(), "  {spinner} {msg} {pos}")
    } else {
        (ProgressBar::new(total), "  {msg} {wide_bar} {pos}/{len}")
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar.with_message(what.to_owned())
}

/// A duration for a table.
#[must_use]
pub fn seconds(took: Duration) -> String {
    if took < Duration::from_millis(100) {
        format!("{:.1} ms", took.as_secs_f64() * 1000.0)
    } else {
        format!("{:.2} s", took.as_secs_f64())
    }
}

/// The median of some figures; 0 if there are none.
#[must_use]
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}
