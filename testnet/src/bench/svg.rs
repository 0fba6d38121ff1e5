//! A picture in SVG, as far as a chart needs it.
//!
//! What always holds: what comes out is well-formed, whatever the texts are, and every number in it is one.

use std::fmt::{Display, Write};

/// Where a text is held.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A picture that is being drawn. Lengths are in pixels, from the upper left corner; looks come from classes.
pub(super) struct Svg {
    width: f64,
    height: f64,
    style: &'static str,
    body: String,
}

impl Svg {
    /// An empty picture. `style` is CSS.
    pub(super) fn new(width: f64, height: f64, style: &'static str) -> Svg {
        Svg { width, height, style, body: String::new() }
    }

    /// A straight line.
    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        self.element(
            "line",
            class,
            &[("x1", number(from.0)), ("y1", number(from.1)), ("x2", number(to.0)), ("y2", number(to.1))],
        );
    }

    /// A rectangle from its upper left corner.
    pub(super) fn rect(&mut self, class: &str, at: (f64, f64), width: f64, height: f64) {
        let (width, height) = (number(width.max(0.0)), number(height.max(0.0)));
        self.element(
            "rect",
            class,
            &[("x", number(at.0)), ("y", number(at.1)), ("width", width), ("height", height)],
        );
    }

    /// A circle round a point.
    pub(super) fn circle(&mut self, class: &str, at: (f64, f64), radius: f64) {
        self.element("circle", class, &[("cx", number(at.0)), ("cy", number(at.1)), ("r", number(radius))]);
    }

    /// A square on its corner, round a point.
    pub(super) fn diamond(&mut self, class: &str, at: (f64, f64), radius: f64) {
        let corners = [(0.0, -radius), (radius, 0.0), (0.0, radius), (-radius, 0.0)];
        let points: Vec<String> =
            corners.iter().map(|(x, y)| format!("{},{}", number(at.0 + x), number(at.1 + y))).collect();
        self.element("polygon", class, &[("points", points.join(" "))]);
    }

    /// A line of text; `at` is on its base line.
    pub(super) fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.push(format_args!(
            "<text class=\"{}\" x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>\n",
            escaped(class),
            number(at.0),
            number(at.1),
            escaped(text)
        ));
    }

    fn element(&mut self, name: &str, class: &str, attributes: &[(&str, String)]) {
        self.push(format_args!("<{name} class=\"{}\"", escaped(class)));
        for (key, value) in attributes {
            self.push(format_args!(" {key}=\"{}\"", escaped(value)));
        }
        self.push("/>\n");
    }

    fn push(&mut self, what: impl Display) {
        // Writing to a string cannot fail.
        let _ = write!(self.body, "{what}");
    }

    /// The whole file; `title` is for those who cannot see it.
    pub(super) fn finish(self, title: &str) -> String {
        let (width, height) = (number(self.width), number(self.height));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\">\n<title>{}</title>\n<style>{}</style>\n{}</svg>\n",
            escaped(title),
            escaped(self.style),
            self.body
        )
    }
}

/// One digit after the point, and none if it is 0. What is no number becomes 0: a picture with a mark at the edge can still be
/// looked at.
fn number(value: f64) -> String {
    let value = if value.is_finite() { (value * 10.0).round() / 10.0 } else { 0.0 };
    // Without a minus before nothing.
    format!("{}", value + 0.0)
}

/// As text or attribute of XML; characters that XML cannot hold are left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => {}
            c if c < ' ' && !matches!(c, '\t' | '\n') => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Anchor, Svg, escaped, number};

    /// Complains about XML whose tags do not match, whose quotes stay open or that has a bare `&`.
    pub(crate) fn check_well_formed(xml: &str) {
        let mut open = Vec::new();
        for (at, part) in xml.split('<').enumerate().skip(1) {
            let (tag, text) =
                part.split_once('>').unwrap_or_else(|| panic!("part {at} does not end: {part:?}"));
            assert_eq!(tag.matches('"').count() % 2, 0, "quotes in <{tag}>");
            for run in [tag, text].iter().flat_map(|piece| piece.split('&').skip(1)) {
                let name = run.split(';').next().unwrap_or_default();
                assert!(["amp", "lt", "gt", "quot"].contains(&name), "a bare & before {run:?}");
            }
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name), "</{name}>");
            } else if !tag.ends_with('/') {
                open.push(tag.split_whitespace().next().unwrap_or_default().to_owned());
            }
        }
        assert_eq!(open, Vec::<String>::new(), "never closed");
    }

    #[test]
    fn a_picture_is_well_formed_whatever_the_texts_are() {
        let mut svg = Svg::new(100.0, 50.0, ".a > .b { fill: red }");
        svg.text("a\"b", (1.0, 2.0), Anchor::Start, "</text><script>&\u{1}\"");
        svg.line("<", (0.0, 0.0), (1.0, 1.0));
        svg.diamond("&", (5.0, 5.0), 3.0);
        let text = svg.finish("less < more & \"so\"");
        check_well_formed(&text);
        assert!(!text.contains("<script>") && !text.contains('\u{1}'), "{text}");
    }

    #[test]
    fn every_number_in_a_picture_is_one() {
        let mut svg = Svg::new(100.0, 50.0, "");
        svg.rect("bar", (f64::NAN, f64::INFINITY), -5.0, f64::NEG_INFINITY);
        svg.circle("dot", (1.0, f64::NAN), 2.0);
        let text = svg.finish("t");
        for word in ["NaN", "inf", "\"-"] {
            assert!(!text.contains(word), "{word} in {text}");
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!((number(12.0), number(1.26), number(-0.01)), ("12".into(), "1.3".into(), "0".into()));
    }

    #[test]
    fn marks_of_xml_are_escaped() {
        assert_eq!(escaped("a<b>&\"c\"\u{0}"), "a&lt;b&gt;&amp;&quot;c&quot;");
    }
}
