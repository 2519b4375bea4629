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

        /// As a number: what it numbers is told by the field that it stands in.
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

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<$name, Self::Err> {
                text.parse().map($name)
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
    /// A message, as a relay numbers it: positive, at most 2^53-1, within one generation of its data.
    #[derive(Serialize, Deserialize)]
    MessageId
    /// A task, as a relay numbers it, likewise.
    #[derive(Serialize, Deserialize)]
    TaskId
}
