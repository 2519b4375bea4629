//! Known defects, each beside the line that avoids it. `make defects` builds with `--cfg planted`, names one at a time in
//! the environment, and sees that a test notices. Every other build holds nothing of it: there [`is`] is the constant
//! `false`. The names, and how to add one, stand in `tests/defects/table.txt`.

/// The variable that names the planted defect.
#[cfg(planted)]
const VARIABLE: &str = "AGENT_RELAY_PLANTED";

/// The defect of this process, for its whole life.
#[cfg(planted)]
static CHOSEN: std::sync::LazyLock<Option<String>> =
    std::sync::LazyLock::new(|| std::env::var(VARIABLE).ok().filter(|name| !name.is_empty()));

/// Whether this defect is to be planted.
#[cfg(planted)]
pub fn is(name: &str) -> bool {
    CHOSEN.as_deref() == Some(name)
}

/// Whether this defect is to be planted: never in this build.
#[cfg(not(planted))]
pub const fn is(_name: &str) -> bool {
    false
}

/// What a test hands on to a process that it starts with an environment of its own: `command.envs(planted::env())`.
#[cfg(planted)]
pub fn env() -> Option<(&'static str, &'static str)> {
    CHOSEN.as_deref().map(|name| (VARIABLE, name))
}

/// What a test hands on to a process that it starts with an environment of its own: nothing in this build.
#[cfg(not(planted))]
pub const fn env() -> Option<(&'static str, &'static str)> {
    None
}
