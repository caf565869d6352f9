//! Tokens as an issuer signs them, good and bad.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

/// Who issues them.
pub const ISSUER: &str = "https://issuer.example";

/// An issuer's key.
pub struct Signer(Ed25519KeyPair);

impl Signer {
    /// The key that grows from this seed.
    pub fn new(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
    }

    /// The JSON Web Key Set with it.
    pub fn keys(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key().as_ref());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": x}]}).to_string()
    }

    /// The value of `authorization` with a token of this header and these claims.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(text.as_bytes()));
        format!("Bearer {text}.{signature}")
    }

    /// The same with the header that is usual.
    pub fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "EdDSA", "typ": "JWT"}), claims)
    }
}

/// Unix time in seconds.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Claims that hold for ten minutes.
pub fn claims(subject: &str) -> Value {
    json!({"iss": ISSUER, "aud": "prism", "sub": subject, "exp": now_s() + 600})
}

/// The same claims with another value of one.
pub fn with(mut claims: Value, key: &str, value: Value) -> Value {
    claims[key] = value;
    claims
}
