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

                /// The word.
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
pub(crate) use words;
