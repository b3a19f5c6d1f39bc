//! Short names for things that are known by their content.

use sha2::{Digest, Sha256};

/// 80 bits: a cluster would need about 2^40 names before two are expected to meet, and nobody can aim for one.
const NAME_BYTES: usize = 10;

/// `<prefix>-<16 characters of a-z and 2-7>`, the same on every node for the same parts. The hash is a cryptographic
/// one because users choose what is hashed: a user who could make two selectors share a name could put addresses into
/// somebody else's set.
pub fn digest(prefix: &str, parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // With its length in front, no two lists of parts run together into the same bytes.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut name = String::with_capacity(prefix.len() + 17);
    name.push_str(prefix);
    name.push('-');
    base32(hash.finalize().iter().take(NAME_BYTES).copied(), &mut name);
    name
}

/// RFC 4648 §6 in lower case, without padding.
fn base32(bytes: impl Iterator<Item = u8>, out: &mut String) {
    let (mut buffer, mut bits) = (0_u32, 0);
    for byte in bytes {
        buffer = (buffer << 8) | u32::from(byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            let digit = ((buffer >> bits) & 31) as u8;
            out.push(char::from(if digit < 26 {
                b'a' + digit
            } else {
                b'2' + digit - 26
            }));
        }
        buffer &= (1 << bits) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_short_and_tell_lists_apart() {
        assert_eq!(digest("s4", &["a"]), digest("s4", &["a"]));
        let name = digest("s4", &["a", "b"]);
        assert_eq!(name.len(), "s4-".len() + 16);
        assert!(
            name.bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7' | b'-'))
        );
        assert_ne!(name, digest("s4", &["ab"]));
        assert_ne!(name, digest("s4", &["a", "b", ""]));
    }

    #[test]
    fn base32_follows_rfc_4648() {
        let mut text = String::new();
        base32("fooba".bytes(), &mut text);
        assert_eq!(text, "mzxw6ytb");
    }
}
