//! The report: one HTML file without scripts, so that it opens anywhere, even offline. The verdict
//! comes first, then charts over time, then tables.

use std::fmt::Write as _;

use crate::answers::{AnswerCounts, Outcome, Row, Second};
use crate::left::Series;
use crate::verdict::Verdict;

/// The contents of the report.
pub struct Report<'a> {
    /// A short description of the run: scenario, users, duration.
    pub run: String,
    pub verdict: &'a Verdict,
    /// Missed thresholds with the observed values. Empty if all were met.
    pub missed: &'a [String],
    pub left: &'a [Series],
    pub answers: &'a AnswerCounts,
}

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--paper:#fff;--good:#1a7f37;--bad:#b3261e;
--a:#0969da;--b:#bf8700}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;--paper:#0d1117;--good:#3fb950;
--bad:#ff7b72;--a:#58a6ff;--b:#d29922}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;
padding:0 1rem}
h1{margin-bottom:0}p.run{color:var(--soft);margin-top:.2rem}
ul.verdict{list-style:none;padding:0}ul.verdict li{padding-left:1.6rem;text-indent:-1.6rem}
.good{color:var(--good)}.bad{color:var(--bad)}
svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:var(--soft)}
.axis{stroke:var(--line);stroke-width:1}.line{fill:none;stroke:var(--a);stroke-width:2}
.success{fill:var(--a)}.refusal{fill:var(--b)}.failure{fill:var(--bad)}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
div.wide{overflow-x:auto}";

impl Report<'_> {
    pub fn html(&self) -> String {
        let good = self.verdict.is_good() && self.missed.is_empty();
        let title =
            if good { "The shop kept its promises" } else { "The shop did NOT keep its promises" };
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width\">\n<title>{title}</title><style>{STYLE}</style></head><body>\n<h1 class=\"{}\">\
             {title}</h1>\n<p class=\"run\">{}</p>\n",
            if good { "good" } else { "bad" },
            escaped(&self.run),
        );
        page += &self.sentences();
        for series in self.left {
            page += &left_chart(series);
        }
        page += &answers_chart(self.answers.seconds());
        page += &self.tables();
        page + "</body></html>\n"
    }

    fn sentences(&self) -> String {
        let mut list = String::from("<ul class=\"verdict\">\n");
        let mut sentence = |good: bool, text: &str| {
            let (class, mark) = if good { ("good", "✓") } else { ("bad", "✗") };
            let _ = writeln!(list, "<li><b class=\"{class}\">{mark}</b> {}</li>", escaped(text));
        };
        for (good, text) in self.verdict.sentences() {
            sentence(*good, text);
        }
        match self.missed {
            [] => sentence(true, "All thresholds on errors and latency were met."),
            missed => missed
                .iter()
                .for_each(|text| sentence(false, &format!("Threshold missed: {text}."))),
        }
        list + "</ul>\n"
    }

    fn tables(&self) -> String {
        let rows = self.answers.rows();
        let is = |wanted: fn(&Outcome) -> bool| rows.iter().filter(move |row| wanted(&row.outcome));
        let mut text = String::new();
        text += &table("Succeeded", is(|outcome| *outcome == Outcome::Success));
        text += &table(
            "Refused as expected (not errors)",
            is(|outcome| matches!(outcome, Outcome::Refusal(_))),
        );
        text += &table("Errors", is(|outcome| matches!(outcome, Outcome::Failure(_))));
        text
    }
}

fn table<'a>(heading: &str, rows: impl Iterator<Item = &'a Row>) -> String {
    let mut body = String::new();
    for row in rows {
        let what = match &row.outcome {
            Outcome::Success => String::new(),
            Outcome::Refusal(code) | Outcome::Failure(code) => {
                format!("<code>{}</code>", escaped(code))
            }
        };
        let _ = writeln!(
            body,
            "<tr><td>{}</td><td>{what}</td><td class=\"n\">{}</td><td class=\"n\">{:.0}</td><td class=\"n\">{:.0}</td>\
             <td class=\"n\">{:.0}</td></tr>",
            escaped(&row.name),
            row.count,
            row.p50_ms,
            row.p99_ms,
            row.max_ms,
        );
    }
    if body.is_empty() {
        return format!("<h2>{heading}</h2>\n<p>None.</p>\n");
    }
    format!(
        "<h2>{heading}</h2>\n<div class=\"wide\"><table><tr><th>request</th><th>answer</th><th class=\"n\">count</th>\
         <th class=\"n\">p50 ms</th><th class=\"n\">p99 ms</th><th class=\"n\">max ms</th></tr>\n{body}</table></div>\n"
    )
}

/// Size of a chart and of its margins, in units of its view box.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 14.0;

/// Maps values to positions on a chart whose axes go from 0 to the largest value.
struct Scale {
    x_max: f64,
    y_max: f64,
}

impl Scale {
    fn x(&self, value: f64) -> f64 {
        LEFT + value / self.x_max.max(f64::MIN_POSITIVE) * (WIDTH - LEFT - 8.0)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - value / self.y_max.max(f64::MIN_POSITIVE) * (HEIGHT - BOTTOM - TOP)
    }

    fn frame(&self, label: &str, inside: &str) -> String {
        let (x0, x1, y0) = (LEFT, WIDTH - 8.0, HEIGHT - BOTTOM);
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">\n\
             <line class=\"axis\" x1=\"{x0}\" y1=\"{y0}\" x2=\"{x1}\" y2=\"{y0}\"/>\
             <line class=\"axis\" x1=\"{x0}\" y1=\"{TOP}\" x2=\"{x0}\" y2=\"{y0}\"/>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{:.0}</text><text x=\"{}\" y=\"{y0}\" text-anchor=\"end\">0</text>\
             <text x=\"{x0}\" y=\"{}\">0 s</text><text x=\"{x1}\" y=\"{}\" text-anchor=\"end\">{:.1} s</text>\n{inside}</svg>\n",
            LEFT - 6.0,
            TOP + 4.0,
            self.y_max,
            LEFT - 6.0,
            HEIGHT - 6.0,
            HEIGHT - 6.0,
            self.x_max,
        )
    }
}

/// A step chart of how many were left: each sample holds until the next.
fn left_chart(series: &Series) -> String {
    let Some((end, last)) = series.samples.last().copied() else { return String::new() };
    let scale = Scale { x_max: end, y_max: series.limit as f64 };
    let mut points = String::new();
    let mut before = None;
    for (at, left) in &series.samples {
        let (x, y) = (scale.x(*at), scale.y(*left as f64));
        if let Some(y) = before {
            let _ = write!(points, "{x:.1},{y:.1} ");
        }
        let _ = write!(points, "{x:.1},{y:.1} ");
        before = Some(y);
    }
    let (name, limit) = (series.name, series.limit);
    let label = format!("{name} left over time: {limit} at first, {last} at the end");
    format!(
        "<h2>{}{} left over time</h2>\n{}",
        name[..1].to_uppercase(),
        &name[1..],
        scale.frame(
            &label,
            &format!("<polyline class=\"line\" points=\"{}\"/>\n", points.trim_end())
        )
    )
}

/// Answers per second, stacked from the bottom: successes, refusals, errors.
fn answers_chart(seconds: &[Second]) -> String {
    let most = seconds.iter().map(Second::total).max().unwrap_or_default();
    let scale = Scale { x_max: seconds.len() as f64, y_max: most as f64 };
    let mut bars = String::new();
    for (at, second) in seconds.iter().enumerate() {
        let (x, width) = (scale.x(at as f64), scale.x(at as f64 + 0.9) - scale.x(at as f64));
        let mut below = 0;
        for (class, count) in [
            ("success", second.successes),
            ("refusal", second.refusals),
            ("failure", second.failures),
        ] {
            if count > 0 {
                let (top, bottom) = (scale.y((below + count) as f64), scale.y(below as f64));
                let height = bottom - top;
                let _ = writeln!(
                    bars,
                    "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
                );
                below += count;
            }
        }
    }
    format!(
        "<h2>Answers per second</h2>\n<p>From the bottom: succeeded, refused as expected, errors.</p>\n{}",
        scale.frame(&format!("answers per second, at most {most}"), &bars)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn answers() -> AnswerCounts {
        let began = Instant::now();
        let mut answers = AnswerCounts::new(began);
        let took = Duration::from_millis(12);
        answers.add("take a coupon", Outcome::Success, took, began);
        answers.add("take a coupon", Outcome::Refusal("409 sold-out".into()), took, began);
        answers
    }

    fn page(missed: &[String]) -> String {
        let mut verdict = Verdict::default();
        verdict.tell("Exactly 2 coupons were issued <b>.");
        let left =
            [Series { name: "coupons", limit: 2, samples: vec![(0.0, 2), (0.5, 1), (1.0, 0)] }];
        let run = "coupon-rush".into();
        Report { run, verdict: &verdict, missed, left: &left, answers: &answers() }.html()
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = page(&[]);
        for foreign in ["http:", "https:", "src=", "href=", "<script", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(page.contains("issued &lt;b&gt;."), "texts are escaped");
    }

    #[test]
    fn the_verdict_comes_first_then_what_was_left_then_figures() {
        let page = page(&[]);
        let order =
            ["<h1 class=\"good\">", "Exactly 2 coupons", "left over time", "<polyline", "<table"];
        let places: Vec<_> = order.iter().map(|part| page.find(part)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
        let points = page.split("points=\"").nth(1).and_then(|rest| rest.split('"').next());
        assert_eq!(
            points.map(|points| points.split(' ').count()),
            Some(5),
            "steps between three samples"
        );
    }

    #[test]
    fn an_expected_refusal_is_no_error_and_a_missed_threshold_is_said_first() {
        let page = page(&[]);
        let (before, errors) = page.split_once("<h2>Errors</h2>").unwrap();
        assert!(before.contains("409 sold-out") && !errors.contains("sold-out"), "{errors}");
        assert!(errors.starts_with("\n<p>None.</p>"));
        let missed = super::tests::page(&["p99<2s: 3 s".to_owned()]);
        assert!(
            missed.contains("<h1 class=\"bad\">")
                && missed.contains("Threshold missed: p99&lt;2s: 3 s.")
        );
    }
}
