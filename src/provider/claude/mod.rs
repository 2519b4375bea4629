//! Claude Code: a session in a terminal (`tui`) or over its standard streams (`stream`).

pub mod launch;
pub mod mirror;
pub mod pane;
pub mod permission;
pub mod plugin;
pub mod stream;
pub mod transcript;
pub mod tui;

/// Oldest version that was tested; an older one is refused with a sentence.
pub const OLDEST: (u32, u32, u32) = (2, 1, 329);
/// The version that all facts were taken from.
pub const TESTED: &str = "2.1.329";

/// Says why that version will not do; `None`: it will, or nobody can say.
pub fn too_old(version: &str) -> Option<String> {
    let mut parts = version.trim().split(['.', '-', '+', ' ']).map(|part| part.parse::<u32>().ok());
    let found = (parts.next()??, parts.next()??, parts.next()??);
    let (major, minor, patch) = OLDEST;
    (found < OLDEST).then(|| {
        format!("Claude Code {version} is older than {major}.{minor}.{patch}, the oldest that can be supervised; update it with `claude update` or npm")
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn old_versions_are_told() {
        for (version, old) in [
            ("2.1.329", false),
            ("2.1.328", true),
            ("2.2.0", false),
            ("1.9.999", true),
            ("3.0.0-beta", false),
            ("x", false),
            ("2.1", false),
        ] {
            assert_eq!(super::too_old(version).is_some(), old, "{version}");
        }
    }
}
