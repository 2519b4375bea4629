//! Tests that cannot run on this machine.

use std::io::Write;

/// Says that the running test ends without having tested anything, and why. `make test` reports
/// such a test as ignored with that reason; where nobody counts them (a bare `cargo test`), and in
/// CI, it fails instead: no test passes that did not run.
#[track_caller]
pub fn skip(reason: &str) {
    if std::env::var_os("CI").is_some() {
        panic!("this test cannot run here: {reason}");
    }
    ignored(reason);
}

/// The same for what nobody can install on a machine: it counts as ignored in CI too.
#[track_caller]
#[allow(dead_code)] // not all who skip need it
pub fn ignored(reason: &str) {
    let list = std::env::var_os("AGENT_RELAY_SKIPPED");
    let Some(list) = list else { panic!("this test cannot run here: {reason}") };
    let name = std::thread::current().name().unwrap_or("a test").to_string();
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(list)
        .expect("the list of skipped tests");
    file.write_all(format!("{name}|{reason}\n").as_bytes()).expect("the list of skipped tests");
}
