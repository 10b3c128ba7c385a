use std::{fmt, str::FromStr};

use rand::RngExt;

/// The secret part of a short address: 80 random bits as 16 letters and digits, in Crockford's Base32.
#[derive(Clone, PartialEq, Eq)]
pub struct ShortCode(String);

/// Crockford's alphabet, in lower case: without `i`, `l`, `o` and `u`.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

const LENGTH: usize = 16;

impl ShortCode {
    /// A new code, which nobody can guess.
    #[must_use]
    pub fn generate() -> Self {
        let mut random = rand::rng();
        let letters = (0..LENGTH).map(|_| ALPHABET[random.random_range(0..ALPHABET.len())]);
        Self(letters.map(char::from).collect())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is not a [`ShortCode`].
#[derive(Debug, thiserror::Error)]
#[error("is not the code of a short address")]
pub struct NotACode;

/// Reads what a person may have typed: in either case, with the letters that look like digits.
impl FromStr for ShortCode {
    type Err = NotACode;

    fn from_str(text: &str) -> Result<Self, NotACode> {
        let letters = text.chars().map(|letter| {
            let letter = match letter.to_ascii_lowercase() {
                'o' => '0',
                'i' | 'l' => '1',
                letter => letter,
            };
            let is_known = u8::try_from(letter).is_ok_and(|byte| ALPHABET.contains(&byte));
            is_known.then_some(letter)
        });
        let code: String = letters.collect::<Option<_>>().ok_or(NotACode)?;
        if code.len() == LENGTH {
            Ok(Self(code))
        } else {
            Err(NotACode)
        }
    }
}

/// Hides the code: whoever reads it in a log could pay the link.
impl fmt::Debug for ShortCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShortCode(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_new_code_is_read_back_and_differs_from_all_others() {
        let codes: HashSet<String> = (0..1000).map(|_| ShortCode::generate().0).collect();
        assert_eq!(codes.len(), 1000);
        for code in &codes {
            let typed = code.to_uppercase().replace('0', "O").replace('1', "l");
            assert_eq!(typed.parse::<ShortCode>().unwrap().as_str(), code);
        }
        let letters: HashSet<char> = codes.iter().flat_map(|code| code.chars()).collect();
        assert_eq!(letters.len(), ALPHABET.len());
    }

    #[test]
    fn anything_else_is_not_a_code() {
        for text in [
            "",
            "0123456789abcde",
            "0123456789abcdefg",
            "0123456789abcdeu",
            "0123456789abcd-e",
        ] {
            assert!(text.parse::<ShortCode>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn reading_a_code_never_panics(text in "\\PC{0,20}") {
            let _ = text.parse::<ShortCode>();
        }
    }
}
