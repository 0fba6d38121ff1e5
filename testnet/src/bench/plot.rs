//! A recorded run as a picture: for each test how a volume compares with the disk's own file system.
//!
//! ```text
//!                     0.1     0.25    0.5     1       2
//!  8 writers           |       |       |     |=o=     |      1.09   15819 commits/s
//!  rm -rf              |       |   ◇ |=o=====|        |      0.35   0.140 s
//! ```
//!
//! The scale is logarithmic, so that twice as fast is as long as half as fast; bars begin at the native file system. Colours
//! can be read on white and on black.

use crate::bench::record::{Record, Row};
use crate::bench::svg::{Anchor, Svg};
use crate::bench::table::{ratio_shown, shown};

/// Middle colours for those who ignore the preference, better ones for those who do not.
const STYLE: &str = "
text { font: 13px system-ui, sans-serif; fill: #6e7781 }
.title { font-size: 15px; font-weight: 600 }
.small { font-size: 11px }
.met { fill: #2f81f7 } .missed { fill: #d9730d }
.grid { stroke: #8b949e; stroke-opacity: 0.3 } .native { stroke: #6e7781; stroke-width: 1.5 }
.goal { stroke: #cf222e; stroke-width: 2.5 }
.ceiling { fill: none; stroke: #8250df; stroke-width: 1.5 }
.round { fill: #6e7781; fill-opacity: 0.8 }
@media (prefers-color-scheme: light) { text { fill: #24292f } .native { stroke: #24292f } .round { fill: #24292f } }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .native { stroke: #e6edf3 } .round { fill: #e6edf3 }
  .goal { stroke: #ff7b72 } .ceiling { stroke: #bc8cff }
}
";

/// Columns, in pixels from the left.
const WIDTH: f64 = 900.0;
const CHART_LEFT: f64 = 235.0;
const CHART_RIGHT: f64 = 685.0;
const RATIO_RIGHT: f64 = 740.0;
const FIGURE_RIGHT: f64 = 885.0;

/// Rows, in pixels from the top.
const LEGEND_Y: f64 = 50.0;
const TICKS_Y: f64 = 82.0;
const FIRST_ROW_Y: f64 = 104.0;
const ROW_HEIGHT: f64 = 26.0;
const BAR_HEIGHT: f64 = 12.0;

/// What an axis may be marked with.
const TICKS: [f64; 12] = [0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0];

/// The part of the ratios that is drawn; always holds 1.
struct Axis {
    from: f64,
    to: f64,
}

impl Axis {
    /// Wide enough for every mark.
    fn over(rows: &[Row]) -> Axis {
        let marks = rows.iter().flat_map(|row| {
            let ratios = (1..row.series.len()).flat_map(|who| row.ratios(who));
            ratios.chain(row.goal).collect::<Vec<_>>()
        });
        let (least, most) =
            marks.fold((0.5f64, 2.0f64), |(least, most), mark| (least.min(mark), most.max(mark)));
        let from = TICKS.iter().rev().find(|tick| **tick <= least).unwrap_or(&TICKS[0]);
        let to = TICKS.iter().find(|tick| **tick >= most).unwrap_or(&TICKS[TICKS.len() - 1]);
        Axis { from: *from, to: *to }
    }

    /// Where a ratio is; what lies outside is at the edge.
    fn x(&self, ratio: f64) -> f64 {
        let part = (ratio.clamp(self.from, self.to) / self.from).ln() / (self.to / self.from).ln();
        CHART_LEFT + part * (CHART_RIGHT - CHART_LEFT)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        TICKS.into_iter().filter(|tick| (self.from..=self.to).contains(tick))
    }
}

/// The picture.
pub(super) fn svg(record: &Record) -> String {
    let n_rows = record.rows.len() as f64;
    let bottom = FIRST_ROW_Y + n_rows * ROW_HEIGHT;
    let mut svg = Svg::new(WIDTH, bottom + 12.0, STYLE);
    let axis = Axis::over(&record.rows);
    legend(&mut svg, record);
    for tick in axis.ticks() {
        let class = if tick == 1.0 { "native" } else { "grid" };
        svg.line(class, (axis.x(tick), TICKS_Y + 6.0), (axis.x(tick), bottom));
        let label = if tick == 1.0 { "ext4 = 1".to_owned() } else { tick.to_string() };
        svg.text("small", (axis.x(tick), TICKS_Y), Anchor::Middle, &label);
    }
    svg.text("small", (RATIO_RIGHT, TICKS_Y), Anchor::End, "ratio");
    svg.text("small", (FIGURE_RIGHT, TICKS_Y), Anchor::End, "ext4");
    let mut y = FIRST_ROW_Y + ROW_HEIGHT / 2.0;
    for row in &record.rows {
        draw_row(&mut svg, &axis, row, y);
        y += ROW_HEIGHT;
    }
    svg.finish("A volume with one keeper against ext4 on the same disk")
}

fn legend(svg: &mut Svg, record: &Record) {
    let title = format!("A volume with one keeper against ext4 on the same disk, {} rounds", record.rounds);
    svg.text("title", (14.0, 24.0), Anchor::Start, &title);
    let y = LEGEND_Y;
    svg.rect("met", (14.0, y - 10.0), 26.0, BAR_HEIGHT);
    svg.text("small", (46.0, y), Anchor::Start, "volume, median");
    svg.rect("missed", (150.0, y - 10.0), 26.0, BAR_HEIGHT);
    svg.text("small", (182.0, y), Anchor::Start, "the same, short of its goal");
    svg.circle("round", (350.0, y - 4.0), 2.5);
    svg.text("small", (360.0, y), Anchor::Start, "one round");
    svg.line("goal", (440.0, y - 12.0), (440.0, y + 4.0));
    svg.text("small", (448.0, y), Anchor::Start, "goal");
    svg.diamond("ceiling", (500.0, y - 4.0), 5.0);
    svg.text("small", (511.0, y), Anchor::Start, "pass-through over FUSE: what FUSE alone costs");
}

fn draw_row(svg: &mut Svg, axis: &Axis, row: &Row, y: f64) {
    svg.text("", (CHART_LEFT - 14.0, y + 4.0), Anchor::End, &row.title);
    let who = row.last();
    let Some(ratio) = row.ratio(who) else {
        svg.text("small", (RATIO_RIGHT, y + 4.0), Anchor::End, "not measured");
        return;
    };
    let (native, end) = (axis.x(1.0), axis.x(ratio));
    let class = if row.is_met() == Some(false) { "missed" } else { "met" };
    svg.rect(class, (native.min(end), y - BAR_HEIGHT / 2.0), (native - end).abs(), BAR_HEIGHT);
    if let Some(goal) = row.goal {
        svg.line("goal", (axis.x(goal), y - 9.0), (axis.x(goal), y + 9.0));
    }
    for between in 1..who {
        if let Some(ratio) = row.ratio(between) {
            svg.diamond("ceiling", (axis.x(ratio), y), 5.0);
        }
    }
    for ratio in row.ratios(who) {
        svg.circle("round", (axis.x(ratio), y), 2.5);
    }
    svg.text("", (RATIO_RIGHT, y + 4.0), Anchor::End, &ratio_shown(Some(ratio)));
    let figure = row.figure(0).map_or_else(String::new, |figure| format!("{} {}", shown(figure), row.unit));
    svg.text("small", (FIGURE_RIGHT, y + 4.0), Anchor::End, &figure);
}

#[cfg(test)]
mod tests {
    use super::{Axis, CHART_LEFT, CHART_RIGHT, svg};
    use crate::bench::record::tests::{record, row};
    use crate::bench::svg::tests::check_well_formed;

    #[test]
    fn a_record_becomes_a_well_formed_picture() {
        let text = svg(&record("rm -rf <of> the \"tree\" & more", 1.5));
        check_well_formed(&text);
        assert!(text.contains("rm -rf &lt;of&gt;"), "{text}");
        assert!(text.contains(">1.50<"), "the ratio is told: {text}");
    }

    #[test]
    fn figures_that_are_none_leave_no_trace_but_the_word() {
        let mut record = record("commits", f64::NAN);
        record.rows[0].series[0].figures = vec![0.0, f64::INFINITY, f64::NAN];
        let text = svg(&record);
        check_well_formed(&text);
        assert!(text.contains("not measured"), "{text}");
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn a_missed_goal_has_another_colour() {
        // One is the legend's.
        let missed = |ratio| svg(&record("commits", ratio)).matches("class=\"missed\"").count();
        assert_eq!((missed(0.4), missed(0.6)), (2, 1), "the goal is 0.5");
    }

    #[test]
    fn the_axis_holds_every_mark_in_order() {
        let axis = Axis::over(&[row("slow", 0.03), row("fast", 12.0)]);
        assert_eq!((axis.from, axis.to), (0.02, 16.0));
        let xs: Vec<f64> = [0.001, 0.02, 0.03, 1.0, 12.0, 16.0, 99.0].map(|ratio| axis.x(ratio)).to_vec();
        assert!(xs.is_sorted(), "{xs:?}");
        assert!(xs.iter().all(|x| (CHART_LEFT..=CHART_RIGHT).contains(x)), "{xs:?}");
    }
}
