//! Known defects, each beside the line that avoids it. `make defects` builds with `--cfg planted`,
//! names one at a time in the environment, and sees that a test notices. Every other build holds
//! nothing of it: there [`is`] is the constant `false`. The names, and how to add one, stand in
//! `tests/defects/table.txt`.

/// The variable that names the planted defect.
#[cfg(planted)]
const VARIABLE: &str = "AGENT_RELAY_PLANTED";

/// What a program that we start must find in its environment too.
#[cfg(planted)]
pub const VARIABLES: &[&str] = &[VARIABLE];

/// What a program that we start must find in its environment too: nothing in this build.
#[cfg(not(planted))]
pub const VARIABLES: &[&str] = &[];

/// The defect of this process; it never changes.
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

#[cfg(planted)]
thread_local! {
    static UNCHECKED: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

/// From here on this thread asks nobody for rights where the place of that name would; empty:
/// nowhere.
#[cfg(planted)]
pub fn uncheck(place: &str) {
    UNCHECKED.set(place.to_string());
}

/// From here on this thread asks nobody for rights where the place of that name would: nothing
/// happens in this build.
#[cfg(not(planted))]
pub const fn uncheck(_place: &str) {}

/// Whether the place of this name is to ask nobody for rights.
#[cfg(planted)]
pub fn is_unchecked(place: &str) -> bool {
    UNCHECKED.with_borrow(|unchecked| !place.is_empty() && unchecked == place)
}

/// Whether the place of this name is to ask nobody for rights: never in this build.
#[cfg(not(planted))]
pub const fn is_unchecked(_place: &str) -> bool {
    false
}

/// What a test hands on to a process that it starts with an environment of its own:
/// `command.envs(planted::env())`.
#[cfg(planted)]
pub fn env() -> Option<(&'static str, &'static str)> {
    CHOSEN.as_deref().map(|name| (VARIABLE, name))
}

/// What a test hands on to a process that it starts with an environment of its own: nothing in this
/// build.
#[cfg(not(planted))]
pub const fn env() -> Option<(&'static str, &'static str)> {
    None
}
