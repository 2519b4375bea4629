//! The table: which binary is measured, and what was measured of it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};

/// The release binary.
pub static BIN: LazyLock<String> = LazyLock::new(|| {
    std::env::var("BENCH_BIN").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/target/release/agent-relay").into()
    })
});
/// An older binary that is measured beside it.
pub static OLD_BIN: LazyLock<Option<String>> =
    LazyLock::new(|| std::env::var("OLD_BIN").ok().filter(|path| !path.is_empty()));
static MEASURES_OLD: AtomicBool = AtomicBool::new(false);
/// The table as it was printed.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Figure, goal, value.
type Row = (String, String, String);
/// Rows of the group that is measured.
static ROWS: Mutex<Vec<Row>> = Mutex::new(Vec::new());

/// The binary that is measured now.
pub fn bin() -> &'static str {
    match OLD_BIN.as_deref() {
        Some(old) if MEASURES_OLD.load(Ordering::Relaxed) => old,
        _ => &BIN,
    }
}

/// One group of rows, and right after it the same with the older binary; so many rounds in turn, of
/// which each row shows the median.
pub fn measure(has_older: bool, rounds: usize, run: &dyn Fn(), name: &str) {
    let rows = || {
        run();
        std::mem::take(&mut *ROWS.lock().expect("rows"))
    };
    let (mut all, mut all_older) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        all.push(rows());
        if OLD_BIN.is_some() && has_older {
            MEASURES_OLD.store(true, Ordering::Relaxed);
            all_older.push(rows());
            MEASURES_OLD.store(false, Ordering::Relaxed);
        }
    }
    let (here, older) = (medians(all), medians(all_older));
    assert!(older.is_empty() || here.len() == older.len(), "{name}: both have the same rows");
    for (at, (figure, goal, value)) in here.iter().enumerate() {
        let beside =
            older.get(at).map(|(.., older)| match (first_number(value), first_number(older)) {
                (Some(new), Some(old)) if old > 0.0 => format!(" {older} | {:.2} |", new / old),
                _ => format!(" {older} | – |"),
            });
        let beside = beside
            .unwrap_or_else(|| if OLD_BIN.is_some() { " – | – |".into() } else { String::new() });
        print_line(format!("| {figure} | {goal} | {value} |{beside}"));
    }
}

/// Of each row the round in whose middle its first number lies.
fn medians(rounds: Vec<Vec<Row>>) -> Vec<Row> {
    let count = rounds.first().map_or(0, Vec::len);
    let median = |at: usize| {
        let mut values: Vec<&Row> = rounds.iter().filter_map(|rows| rows.get(at)).collect();
        let number = |row: &Row| first_number(&row.2).unwrap_or(0.0);
        values.sort_by(|a, b| number(a).total_cmp(&number(b)));
        values[values.len() / 2].clone()
    };
    (0..count).map(median).collect()
}

/// The head of the table.
pub fn print_head() {
    let older =
        if OLD_BIN.is_some() { [" older | here : older |", " --- | --- |"] } else { [""; 2] };
    print_line(format!("| figure | goal | here |{}", older[0]));
    print_line(format!("| --- | --- | --- |{}", older[1]));
}

fn print_line(line: String) {
    println!("{line}");
    LINES.lock().expect("lines").push(line);
}

/// Puts the table that was printed into a page, in place of the one there; the text around it
/// stays.
pub fn record(page: &Path) {
    let text = std::fs::read_to_string(page).expect("the page of figures");
    let lines = LINES.lock().expect("lines").join("\n");
    std::fs::write(page, with_table(&text, &lines)).expect("the page of figures");
}

/// A page with another table in place of its first one.
fn with_table(page: &str, table: &str) -> String {
    let is_row = |line: &&str| line.starts_with('|');
    let before: Vec<&str> = page.lines().take_while(|line| !is_row(line)).collect();
    let after: Vec<&str> = page.lines().skip(before.len()).skip_while(is_row).collect();
    assert!(before.len() + after.len() < page.lines().count(), "the page has a table");
    let parts = before.into_iter().chain(table.lines()).chain(after);
    parts.map(|line| format!("{line}\n")).collect()
}

/// The first number in a value, in its own unit: a duration in ns, else as it stands.
fn first_number(value: &str) -> Option<f64> {
    let start = value.find(|c: char| c.is_ascii_digit())?;
    let rest = &value[start..];
    let end =
        rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ',').unwrap_or(rest.len());
    let number: f64 = rest[..end].trim_end_matches([',', '.']).replace(',', "").parse().ok()?;
    let unit = rest[end..].trim_start();
    let factor = match unit {
        unit if unit.starts_with("µs") => 1e3,
        unit if unit.starts_with("ms") => 1e6,
        unit if unit.starts_with("s ") || unit == "s" || unit.starts_with("s,") => 1e9,
        _ => 1.0,
    };
    Some(number * factor)
}

/// A row; printed when its group is complete.
pub fn row(figure: &str, goal: &str, here: String) {
    ROWS.lock().expect("rows").push((figure.into(), goal.into(), here));
}
