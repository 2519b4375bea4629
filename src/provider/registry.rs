//! The table of providers: the one place that names them all.
//!
//! A new provider is a folder beside this file, a row here, and its documentation.

pub use super::capabilities::Provider;
use super::hooks::Hooks;
use super::settings::{ProviderSetting, SHARED};
use super::{acp, claude, codex};

/// All providers, in the order of help texts.
pub const PROVIDERS: &[Provider] = &[claude::PROVIDER, codex::PROVIDER, acp::PROVIDER];

/// Names that the name of the program may hold: `<name>-relay` is `agent-relay run <name>`.
const PROGRAM_NAMES: [&str; 2] = ["claude", "codex"];

/// Where installers put programs of a user; looked at after PATH, since services and cron have a
/// short one. `~/` is the home.
pub const USUAL_PLACES: [&str; 7] = [
    "~/.local/bin",
    "~/bin",
    "/usr/local/bin",
    "~/.claude/local",
    "~/.bun/bin",
    "~/.npm-global/bin",
    "~/.cargo/bin",
];

/// Every setting of every provider, with the provider that has it alone.
pub fn settings() -> impl Iterator<Item = (Option<&'static str>, &'static ProviderSetting)> {
    let own = |provider: &'static Provider| {
        provider.settings.iter().map(|setting| (Some(provider.name), setting))
    };
    SHARED.iter().map(|setting| (None, setting)).chain(PROVIDERS.iter().flat_map(own))
}

/// The provider of that name.
pub fn by_name(name: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().find(|provider| provider.name == name)
}

/// Whether the word names a provider, of this version or of another.
pub fn is_provider(word: &str) -> bool {
    by_name(word).is_some() || PROGRAM_NAMES.contains(&word)
}

/// Names for error texts.
pub fn names() -> String {
    PROVIDERS.iter().map(|provider| provider.name).collect::<Vec<_>>().join(", ")
}

/// The provider that the program's own name asks for.
pub fn by_program(path: &str) -> Option<&'static str> {
    let program = path.rsplit('/').next().unwrap_or_default();
    PROGRAM_NAMES.into_iter().find(|name| program.contains(name))
}

/// The provider that runs whatever command it is given.
pub fn any_command() -> &'static Provider {
    PROVIDERS
        .iter()
        .find(|provider| provider.needs_command)
        .expect("the table has one, as its test says")
}

/// The hooks of all providers.
pub fn hooks() -> impl Iterator<Item = &'static Hooks> {
    PROVIDERS.iter().filter_map(|provider| provider.hooks)
}

/// Variables that tell what a session starts which process the session is.
pub fn session_pid_env() -> impl Iterator<Item = &'static str> {
    PROVIDERS.iter().filter_map(|provider| provider.session_pid_env)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_and_stand_once() {
        let names: std::collections::BTreeSet<&str> =
            PROVIDERS.iter().map(|provider| provider.name).collect();
        assert_eq!(names.len(), PROVIDERS.len());
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase())), "{names:?}");
        assert!(!(any_command().presets)().is_empty());
        assert!(
            PROVIDERS
                .iter()
                .all(|provider| !provider.transports.is_empty() && !provider.examples.is_empty())
        );
    }

    /// A flag and a name in a file mean one thing, and what has neither cannot be set.
    #[test]
    fn settings_are_told_apart() {
        let mut names = std::collections::BTreeSet::new();
        for (_, setting) in settings() {
            assert!(!(setting.flag.is_empty() && setting.file.is_empty()), "{}", setting.about);
            assert!(
                !setting.about.is_empty()
                    && (setting.flag.is_empty() || setting.flag.starts_with("--"))
            );
            let said = [setting.flag, setting.file, setting.env]
                .into_iter()
                .filter(|name| !name.is_empty());
            said.for_each(|name| assert!(names.insert(name), "{name} stands twice"));
        }
    }

    #[test]
    fn the_name_of_the_program_chooses_a_provider() {
        for (path, want) in [
            ("/usr/bin/claude-relay", Some("claude")),
            ("codex-relay", Some("codex")),
            ("/home/claude/bin/agent-relay", None),
            ("", None),
        ] {
            assert_eq!(by_program(path), want, "{path}");
        }
        assert!(PROGRAM_NAMES.iter().all(|name| by_name(name).is_some()));
        assert!(is_provider("codex") && !is_provider("nobody"));
    }
}
