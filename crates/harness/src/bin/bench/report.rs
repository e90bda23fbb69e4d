//! What was measured: rows with their statistics, targets and reasons where there is no figure.

use std::path::Path;

use serde::Serialize;

/// How a figure is judged: the median (or, where said, another statistic) is at most this.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// The median is at most so much.
    AtMost(f64),
    /// The median is at least so much.
    AtLeast(f64),
    /// The largest value is at most so much.
    MaxAtMost(f64),
    /// Told, not judged.
    None,
}

/// One row that the report has in any case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) target: Target,
}

/// One row of the report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    unit: String,
    median: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    p99: Option<f64>,
    n: usize,
    engine: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
    /// Under which conditions it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    conditions: Option<String>,
    /// Why there is no figure.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
}

/// The machine that the figures belong to.
#[derive(Clone, Debug, Serialize)]
struct Machine {
    /// Name of the processor: figures of memory differ by more than twofold between them.
    processor: String,
    kernel: String,
    cpus: usize,
    memory_kib: u64,
    /// Load of the last minute when the bench began: other work spoils figures.
    load_at_start: f64,
}

/// The report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    quick: bool,
    machine: Machine,
    results: Vec<Row>,
    #[serde(skip)]
    expected: Vec<Expected>,
}

impl Target {
    fn words(self) -> Option<String> {
        match self {
            Self::AtMost(limit) => Some(format!("median <= {limit}")),
            Self::AtLeast(limit) => Some(format!("median >= {limit}")),
            Self::MaxAtMost(limit) => Some(format!("max <= {limit}")),
            Self::None => None,
        }
    }

    fn met(self, stats: &Stats) -> Option<bool> {
        match self {
            Self::AtMost(limit) => Some(stats.median <= limit),
            Self::AtLeast(limit) => Some(stats.median >= limit),
            Self::MaxAtMost(limit) => Some(stats.max <= limit),
            Self::None => None,
        }
    }
}

/// Returns the processor's name as `/proc/cpuinfo` gives it.
fn processor(cpuinfo: &str) -> String {
    let name = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or("unknown", |(_, name)| name.trim()).to_owned()
}

/// Returns what executed the guest of the row `name`.
fn engine_of(name: &str) -> &'static str {
    match name.split('.').next() {
        Some("soft" | "boot") => "soft",
        Some("tcg") => "tcg",
        Some("host") => "none",
        _ => "kvm",
    }
}

/// Statistics of samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stats {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// Nearest rank: with fewer than 100 samples the largest.
    pub(crate) p99: f64,
}

impl Stats {
    /// Returns the statistics of `samples`, or nothing of none.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[half]
        } else {
            f64::midpoint(sorted[half - 1], sorted[half])
        };
        let p99 = sorted[(sorted.len() * 99).div_ceil(100).max(1) - 1];
        Some(Self {
            median,
            min,
            max,
            p99,
        })
    }
}

impl Report {
    /// A report that will have the rows `expected`, in that order.
    pub(crate) fn new(quick: bool, expected: &[Expected]) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let release = read("/proc/sys/kernel/osrelease");
        let load = read("/proc/loadavg");
        let first_word = |text: &str| text.split_whitespace().next().unwrap_or("").to_owned();
        Self {
            quick,
            machine: Machine {
                processor: processor(&read("/proc/cpuinfo")),
                kernel: release.trim().to_owned(),
                cpus: std::thread::available_parallelism().map_or(1, usize::from),
                memory_kib: crate::memory::meminfo_kib("MemTotal").unwrap_or(0),
                load_at_start: first_word(&load).parse().unwrap_or(0.0),
            },
            results: vec![],
            expected: expected.to_vec(),
        }
    }

    /// Adds the row `name`; rows beside the expected ones need their unit.
    pub(crate) fn add(&mut self, name: &str, unit: &str, samples: &[f64], conditions: &str) {
        let expected = self.expected.iter().find(|row| row.name == name);
        let unit = expected.map_or(unit, |row| row.unit).to_owned();
        let Some(stats) = Stats::of(samples) else {
            return self.skip(name, "no sample was taken in the time there was");
        };
        let target = expected.map_or(Target::None, |row| row.target);
        let rounded = |value: f64| Some((value * 1000.0).round() / 1000.0);
        let row = Row {
            name: name.to_owned(),
            unit,
            median: rounded(stats.median),
            min: rounded(stats.min),
            max: rounded(stats.max),
            p99: rounded(stats.p99),
            n: samples.len(),
            engine: engine_of(name),
            target: target.words(),
            met: target.met(&stats),
            conditions: Some(conditions.to_owned()).filter(|text| !text.is_empty()),
            skipped: None,
        };
        eprintln!("    {}", row.line());
        self.results.push(row);
    }

    /// Says why the row `name` has no figure, unless it has one.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        if self.results.iter().any(|row| row.name == name) {
            return;
        }
        let expected = self.expected.iter().find(|row| row.name == name);
        self.results.push(Row {
            name: name.to_owned(),
            unit: expected.map_or("", |row| row.unit).to_owned(),
            median: None,
            min: None,
            max: None,
            p99: None,
            n: 0,
            engine: engine_of(name),
            target: expected.and_then(|row| row.target.words()),
            met: None,
            conditions: None,
            skipped: Some(reason.to_owned()),
        });
    }

    /// Says why no row whose name starts so has a figure, where it has none.
    pub(crate) fn skip_all(&mut self, starts: &[&str], reason: &str) {
        for row in self.expected.clone() {
            if starts.iter().any(|start| row.name.starts_with(start)) {
                self.skip(row.name, reason);
            }
        }
    }

    /// Puts the rows in order, adds those that are missing, writes the file and prints the table.
    pub(crate) fn finish(mut self, path: &Path) -> anyhow::Result<()> {
        for row in self.expected.clone() {
            self.skip(row.name, "its section ended before it");
        }
        let order: Vec<&str> = self.expected.iter().map(|row| row.name).collect();
        self.results.sort_by_key(|row| {
            let at = order.iter().position(|name| *name == row.name);
            at.unwrap_or(order.len())
        });
        std::fs::write(path, serde_json::to_string_pretty(&self)? + "\n")?;
        let title = |text: &str| format!("{text:>12}");
        println!(
            "{:<44} {:<5}{}{}{}{} {:>4}  target",
            "row",
            "unit",
            title("median"),
            title("min"),
            title("max"),
            title("p99"),
            "n"
        );
        for row in &self.results {
            println!("{}", row.line());
        }
        println!("-> {}", path.display());
        Ok(())
    }
}

impl Row {
    fn line(&self) -> String {
        let head = format!("{:<44} {:<5}", self.name, self.unit);
        if let Some(reason) = &self.skipped {
            return format!("{head}  skipped: {reason}");
        }
        let number = |value: Option<f64>| match value {
            None => format!("{:>12}", "-"),
            Some(value) if value.fract() == 0.0 => format!("{value:>12.0}"),
            Some(value) => format!("{value:>12.2}"),
        };
        let verdict = match (self.met, &self.target) {
            (Some(true), Some(target)) => format!("{target}: met"),
            (Some(false), Some(target)) => format!("{target}: MISSED"),
            _ => String::new(),
        };
        format!(
            "{head}{}{}{}{} {:>4}  {verdict}",
            number(self.median),
            number(self.min),
            number(self.max),
            number(self.p99),
            self.n
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_few_samples() {
        assert_eq!(Stats::of(&[]), None);
        let one = Stats::of(&[7.0]).expect("one sample");
        assert_eq!(
            (one.median, one.min, one.max, one.p99),
            (7.0, 7.0, 7.0, 7.0)
        );
        let four = Stats::of(&[4.0, 1.0, 3.0, 2.0]).expect("four samples");
        assert_eq!((four.median, four.p99), (2.5, 4.0));
    }

    #[test]
    fn p99_of_two_hundred_leaves_the_two_largest_out() {
        let samples: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(Stats::of(&samples).expect("samples").p99, 198.0);
    }

    #[test]
    fn a_row_is_never_dropped() {
        let expected = [Expected {
            name: "a",
            unit: "us",
            target: Target::AtMost(1.0),
        }];
        let mut report = Report::new(true, &expected);
        report.add("a", "", &[], "");
        assert!(report.results[0].skipped.is_some());
        report.add("b", "ms", &[2.0], "");
        report.skip("b", "too late");
        assert_eq!(report.results.len(), 2);
        assert_eq!(report.results[1].median, Some(2.0));
    }
}
