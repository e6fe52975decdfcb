//! Tokens as the shop's own backend would sign them (RFC 7519, HS256). Rushgate's crate has this
//! too, but using it would mean building all its dependencies a second time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64_URL;
use hmac::{Hmac, Mac as _};
use serde_json::json;
use sha2::Sha256;

use crate::Outcome;

const HEADER: &str = r#"{"typ":"JWT","alg":"HS256"}"#;

pub fn mint_token(secret: &[u8], subject: &str, scope: &str, ttl: Duration) -> Outcome<String> {
    let exp = (SystemTime::now().duration_since(UNIX_EPOCH)? + ttl).as_secs();
    let claims = json!({ "sub": subject, "exp": exp, "scope": scope });
    sign(secret, HEADER, &claims.to_string())
}

fn sign(secret: &[u8], header: &str, claims: &str) -> Outcome<String> {
    let signed = format!("{}.{}", BASE64_URL.encode(header), BASE64_URL.encode(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret)?;
    mac.update(signed.as_bytes());
    Ok(format!("{signed}.{}", BASE64_URL.encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_7515_is_signed_as_there() {
        let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let key = BASE64_URL.decode(key).unwrap();
        let header = "{\"typ\":\"JWT\",\r\n \"alg\":\"HS256\"}";
        let claims =
            "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}";
        let token = sign(&key, header, claims).unwrap();
        assert!(token.ends_with(".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"), "{token}");
    }
}
