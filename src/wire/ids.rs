//! Ids as they travel: a number of one kind is never taken for one of another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Numbers, each kind in a type of its own. They count from 1; 0, the default, is none.
macro_rules! numbers {
    ($($(#[$meaning:meta])* $name:ident)*) => {$(
        $(#[$meaning])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        /// Shown as a plain number: the field that it stands in says what it numbers.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// The one that follows.
            pub fn next(self) -> $name {
                self.plus(1)
            }

            /// The one that is so many further.
            pub fn plus(self, count: u64) -> $name {
                $name(self.0.saturating_add(count))
            }

            /// The one before; of the first, and of none, none.
            pub fn previous(self) -> $name {
                $name(self.0.saturating_sub(1))
            }

            /// Whether it stands for none.
            pub fn is_none(self) -> bool {
                self.0 == 0
            }
        }

        /// As people write it, also with the sign that they are shown it with.
        impl FromStr for $name {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<$name, Self::Err> {
                let number = text.strip_prefix('#').unwrap_or(text).parse().ok();
                number.filter(|number| *number > 0).map($name).ok_or("an id is a number, such as 12")
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

pub(crate) use numbers;

numbers! {
    /// A message, as a relay numbers it: positive, at most 2^53-1, within one generation of its
    /// data.
    #[derive(Serialize, Deserialize)]
    MessageId
    /// A task, as a relay numbers it, likewise.
    #[derive(Serialize, Deserialize)]
    TaskId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_people_write_them() {
        for (text, id) in [
            ("12", Some(12)),
            ("#12", Some(12)),
            ("0", None),
            ("", None),
            ("#", None),
            ("##1", None),
            ("-1", None),
            ("x", None),
        ] {
            assert_eq!(text.parse::<MessageId>().ok(), id.map(MessageId), "{text:?}");
        }
        assert_eq!("99999999999999999999".parse::<TaskId>(), Err("an id is a number, such as 12"));
    }
}
