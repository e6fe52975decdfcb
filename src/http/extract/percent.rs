//! Percent-decoding, by hand because it is strict: the crates for it let broken sequences through
//! as they are, or replace bytes that are not UTF-8.

use crate::http::problem::Problem;

pub(super) fn undecodable() -> Problem {
    Problem::malformed("The path or query holds a percent-encoding that is broken or no UTF-8.")
}

/// Decodes `%xx`.
pub(super) fn percent_decode(text: &str) -> Result<String, Problem> {
    if !text.contains('%') {
        return Ok(text.to_owned());
    }
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    let hex =
        |digit: Option<u8>| digit.and_then(|d| char::from(d).to_digit(16)).ok_or_else(undecodable);
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let value = hex(bytes.next())? * 16 + hex(bytes.next())?;
            decoded.push(u8::try_from(value).map_err(|_| undecodable())?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).map_err(|_| undecodable())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_decoded_or_refused() {
        assert_eq!(percent_decode("a%20b%ED%95%9c").unwrap(), "a b한");
        for bad in ["%", "%2", "%zz", "%+1", "%FF", "a%"] {
            assert!(percent_decode(bad).is_err(), "{bad}");
        }
    }
}
