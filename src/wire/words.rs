//! Sets of words that cross a process boundary, each as an enum: a word is spelt in one place.

/// Enums whose variants are words: `ALL`, `as_str`, `parse` and `Display` come from one list.
macro_rules! words {
    ($(
        $(#[$about:meta])* $name:ident { $($(#[$what:meta])* $variant:ident = $word:literal),+ $(,)? }
    )+) => {
        $(
            $(#[$about])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
            #[allow(missing_docs)] // the names say it
            pub enum $name { $($(#[$what])* $variant),+ }

            impl $name {
                /// All of them, in the order of the list.
                pub const ALL: &'static [$name] = &[$($name::$variant),+];

                /// The word as it is written.
                pub const fn as_str(self) -> &'static str {
                    match self { $($name::$variant => $word),+ }
                }

                /// What a word means; none for a word that is not one of these.
                pub fn parse(word: &str) -> Option<$name> {
                    $name::ALL.iter().copied().find(|known| known.as_str() == word)
                }
            }

            impl std::fmt::Display for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                    f.pad(self.as_str())
                }
            }
        )+
    };
}

/// The same where a peer may know more words than this program: an unknown one travels on as it
/// came.
macro_rules! open_words {
    ($(
        $(#[$about:meta])* $name:ident { $($(#[$what:meta])* $variant:ident = $word:literal),+ $(,)? }
    )+) => {
        $(
            $(#[$about])*
            #[derive(Debug, Clone, PartialEq, Eq)]
            #[allow(missing_docs)] // the names say it
            pub enum $name {
                $($(#[$what])* $variant,)+
                /// A word that this program does not know; empty: there was none.
                Other(String),
            }

            impl $name {
                /// All that this program knows, in the order of the list.
                pub const KNOWN: &'static [$name] = &[$($name::$variant),+];

                /// The word as it is written.
                pub fn as_str(&self) -> &str {
                    match self {
                        $($name::$variant => $word,)+
                        $name::Other(word) => word,
                    }
                }

                /// What a word means; none for a word that this program does not know.
                pub fn parse(word: &str) -> Option<$name> {
                    $name::KNOWN.iter().find(|known| known.as_str() == word).cloned()
                }

                /// Whether there was no word.
                pub fn is_empty(&self) -> bool {
                    self.as_str().is_empty()
                }
            }

            impl Default for $name {
                fn default() -> $name {
                    $name::Other(String::new())
                }
            }

            impl From<&str> for $name {
                fn from(word: &str) -> $name {
                    $name::parse(word).unwrap_or_else(|| $name::Other(word.to_string()))
                }
            }

            impl From<String> for $name {
                fn from(word: String) -> $name {
                    $name::parse(&word).unwrap_or($name::Other(word))
                }
            }

            impl std::fmt::Display for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                    f.pad(self.as_str())
                }
            }

            impl serde::Serialize for $name {
                fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                    to.serialize_str(self.as_str())
                }
            }

            impl<'de> serde::Deserialize<'de> for $name {
                fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<$name, D::Error> {
                    <String as serde::Deserialize>::deserialize(from).map($name::from)
                }
            }
        )+
    };
}
pub(crate) use {open_words, words};

#[cfg(test)]
mod tests {
    use crate::wire::api::{AgentCommand, CommandStatus, Message, MessageKind, TaskStatus};
    use crate::wire::control::LogLevel;

    #[test]
    fn every_word_means_what_it_says() {
        for level in LogLevel::ALL {
            assert_eq!(LogLevel::parse(level.as_str()), Some(*level));
        }
        for status in CommandStatus::KNOWN {
            assert_eq!(CommandStatus::parse(status.as_str()).as_ref(), Some(status));
        }
        assert!(LogLevel::Fatal > LogLevel::Error && LogLevel::Error > LogLevel::Debug);
        assert_eq!((AgentCommand::parse("agent.dance"), LogLevel::parse("")), (None, None));
    }

    #[test]
    fn an_unknown_word_travels_as_it_came() {
        let text = r#"{"id":1,"kind":"poem"}"#;
        let message: Message = serde_json::from_str(text).expect("lenient");
        assert_eq!(message.kind, MessageKind::Other("poem".into()));
        assert_eq!(serde_json::to_value(&message).expect("plain data")["kind"], "poem");
        assert!(message.expects_reply() && MessageKind::default().is_empty());
        assert_eq!(TaskStatus::from("done".to_string()), TaskStatus::Done);
        assert!(serde_json::from_str::<TaskStatus>("7").is_err());
    }
}
