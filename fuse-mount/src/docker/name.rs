//! Volume names: what may be one, and the type that proves it.

use std::fmt;
use std::str::FromStr;

/// Most bytes a volume name may have.
pub const NAME_BYTES_MAX: usize = 128;

/// A volume's name: a letter or digit, then at most 127 letters, digits, `_`, `.` or `-`; ASCII only.
///
/// No engine checks the names it sends, so this is the gate. Such a name can neither leave a directory nor be an option
/// nor need quoting; still it is mapped to a volume id and never becomes a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

impl VolumeName {
    /// Accepts `text` if it is a valid name.
    ///
    /// # Errors
    /// [`NameError`] says what is wrong with it; the text of the error does not repeat more than the start of the name.
    pub fn new(text: &str) -> Result<VolumeName, NameError> {
        let first = text.chars().next().ok_or(NameError::Empty)?;
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong { bytes: text.len() });
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::Start { name: text.to_owned(), found: first });
        }
        match text.chars().find(|c| !is_allowed(*c)) {
            Some(found) => Err(NameError::Character { name: text.to_owned(), found }),
            None => Ok(VolumeName(text.to_owned())),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as owned text.
    pub fn into_string(self) -> String {
        self.0
    }
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for VolumeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<VolumeName, NameError> {
        VolumeName::new(text)
    }
}

/// Why a text is not a volume name; choose another name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is no text at all.
    #[error("a volume name cannot be empty")]
    Empty,
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("the volume name has {bytes} bytes, the most is {NAME_BYTES_MAX}")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// The first character is neither a letter nor a digit.
    #[error(
        "volume name {name:?} starts with {found:?}; it must start with a letter or digit (a-z, A-Z, 0-9)"
    )]
    Start {
        /// The name.
        name: String,
        /// Its first character.
        found: char,
    },
    /// Some later character is not allowed.
    #[error(
        "volume name {name:?} contains {found:?}; only letters, digits, '_', '.' and '-' are allowed (ASCII)"
    )]
    Character {
        /// The name.
        name: String,
        /// The first character that is not allowed.
        found: char,
    },
}

#[cfg(test)]
mod tests {
    use super::{NAME_BYTES_MAX, NameError, VolumeName};
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    #[test]
    fn names_people_use_are_accepted() {
        let longest = "a".repeat(NAME_BYTES_MAX);
        let anonymous = "0123456789abcdef".repeat(4);
        for name in ["a", "notes", "my_app.db-1", "0", "A-", "a..b", &longest, &anonymous] {
            assert_eq!(VolumeName::new(name).expect(name).as_str(), name);
        }
    }

    #[test]
    fn names_that_could_be_paths_options_or_tricks_are_refused() {
        let too_long = "a".repeat(NAME_BYTES_MAX + 1);
        for name in [
            "",
            ".",
            "..",
            "../evil",
            "a/b",
            "/abs",
            "a b",
            "ünï",
            "x:y",
            "-rf",
            "_x",
            ".hidden",
            "a\0b",
            "a\nb",
            "a\\b",
            "%2e",
            "a\u{202e}b",
            "\u{ff41}",
            &too_long,
        ] {
            assert!(VolumeName::new(name).is_err(), "{name:?} was accepted");
        }
        assert_eq!(VolumeName::new(&"x".repeat(300)), Err(NameError::TooLong { bytes: 300 }));
    }

    proptest! {
        #[test]
        fn a_name_is_accepted_exactly_if_it_has_the_documented_shape(text in "\\PC{0,140}") {
            let bytes = text.as_bytes();
            let shape = !bytes.is_empty()
                && bytes.len() <= NAME_BYTES_MAX
                && bytes[0].is_ascii_alphanumeric()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b));
            prop_assert_eq!(VolumeName::new(&text).is_ok(), shape);
        }

        #[test]
        fn every_name_of_the_documented_shape_is_accepted(text in "[A-Za-z0-9][A-Za-z0-9_.-]{0,127}") {
            prop_assert!(VolumeName::new(&text).is_ok());
        }
    }
}
