//! The table: which binary is measured, and what was measured of it.

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
/// Rows of the group that is measured: figure, goal, value.
static ROWS: Mutex<Vec<(String, String, String)>> = Mutex::new(Vec::new());

/// The binary that is measured now.
pub fn bin() -> &'static str {
    match OLD_BIN.as_deref() {
        Some(old) if MEASURES_OLD.load(Ordering::Relaxed) => old,
        _ => &BIN,
    }
}

/// One group of rows, and right after it the same with the older binary.
pub fn measure(has_older: bool, run: &dyn Fn(), name: &str) {
    let rows = || {
        run();
        std::mem::take(&mut *ROWS.lock().expect("rows"))
    };
    let here = rows();
    let older = match OLD_BIN.is_some() && has_older {
        true => {
            MEASURES_OLD.store(true, Ordering::Relaxed);
            let older = rows();
            MEASURES_OLD.store(false, Ordering::Relaxed);
            assert_eq!(here.len(), older.len(), "{name}: both have the same rows");
            older
        }
        false => Vec::new(),
    };
    for (at, (figure, goal, value)) in here.iter().enumerate() {
        let beside =
            older.get(at).map(|(.., older)| match (first_number(value), first_number(older)) {
                (Some(new), Some(old)) if old > 0.0 => format!(" {older} | {:.2} |", new / old),
                _ => format!(" {older} | – |"),
            });
        let beside = beside
            .unwrap_or_else(|| if OLD_BIN.is_some() { " – | – |".into() } else { String::new() });
        println!("| {figure} | {goal} | {value} |{beside}");
    }
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
