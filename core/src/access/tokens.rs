//! Bearer tokens (JWT, RFC 7519): whose are taken, and what has to hold for one.
//!
//! A token is taken if it is signed with one of its issuer's keys by an algorithm that is allowed for it, is meant for us, and
//! holds now, give or take the skew that the issuer's clock may have. The keys are public: what would verify with a secret, or
//! with nothing (`alg: none`), is never taken.

use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;

use super::provider;
use crate::config::access::{TokenAlgorithm, TokenIssuer};

/// Longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Largest file of keys, in bytes.
const KEYS_BYTES_MAX: u64 = 1 << 20;
/// Most keys that one issuer may have.
const KEYS_MAX: usize = 64;
/// Most keys that are tried for one token that does not name its own.
const TRIES_MAX: usize = 4;
/// How far an issuer's clock may be from ours, unless it says otherwise, in seconds.
const SKEW_S: u64 = 30;

/// An issuer, and what its tokens are held to.
#[derive(Debug)]
pub(super) struct Issuer {
    name: Box<str>,
    validation: Validation,
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    key: DecodingKey,
}

/// What of a token is looked at.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    /// Read so that one of a wrong type is refused, not passed over.
    #[serde(default, rename = "nbf")]
    _nbf: Option<f64>,
}

#[derive(Deserialize)]
struct Issued {
    iss: String,
}

/// A token that holds.
#[derive(Debug)]
pub(super) struct Verified<'a> {
    pub(super) issuer: &'a str,
    pub(super) subject: String,
    /// Unix time until which it holds, in seconds, the skew included.
    pub(super) until_s: u64,
}

fn algorithm(of: TokenAlgorithm) -> Algorithm {
    match of {
        TokenAlgorithm::Es256 => Algorithm::ES256,
        TokenAlgorithm::Es384 => Algorithm::ES384,
        TokenAlgorithm::EdDsa => Algorithm::EdDSA,
        TokenAlgorithm::Rs256 => Algorithm::RS256,
        TokenAlgorithm::Rs384 => Algorithm::RS384,
        TokenAlgorithm::Rs512 => Algorithm::RS512,
        TokenAlgorithm::Ps256 => Algorithm::PS256,
        TokenAlgorithm::Ps384 => Algorithm::PS384,
        TokenAlgorithm::Ps512 => Algorithm::PS512,
    }
}

impl Issuer {
    /// Reads the keys of an issuer.
    pub(super) fn load(issuer: &TokenIssuer) -> Result<Self, String> {
        provider::install();
        let path = &issuer.keys.value.0;
        let wrong = |what: String| {
            format!("{path}: {what}; give the JSON Web Key Set of {}", issuer.issuer.value.0)
        };
        let unreadable = |error: std::io::Error| wrong(format!("cannot be read: {error}"));
        if std::fs::metadata(path).map_err(unreadable)?.len() > KEYS_BYTES_MAX {
            return Err(wrong(format!("larger than {KEYS_BYTES_MAX} bytes")));
        }
        let text = std::fs::read(path).map_err(unreadable)?;
        let set: JwkSet =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        let is_public = |parameters: &AlgorithmParameters| {
            !matches!(parameters, AlgorithmParameters::OctetKey(_) | AlgorithmParameters::Other(_))
        };
        let keys = set.keys.iter().filter(|key| is_public(&key.algorithm)).map(|key| {
            let id = key.common.key_id.clone();
            DecodingKey::from_jwk(key).map(|key| Key { id, key })
        });
        let keys: Vec<Key> =
            keys.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
        if keys.is_empty() || keys.len() > KEYS_MAX {
            return Err(wrong(format!("{} public keys, not 1 to {KEYS_MAX}", keys.len())));
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.algorithms = match issuer.algorithms.is_empty() {
            true => vec![Algorithm::ES256, Algorithm::RS256, Algorithm::EdDSA],
            false => issuer.algorithms.iter().map(|one| algorithm(one.value)).collect(),
        };
        validation.leeway = issuer.clock_skew.map_or(SKEW_S, |skew| skew.value.0.as_secs());
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&issuer.issuer.value.0]);
        let audience: Vec<&str> = issuer.audience.iter().map(|one| one.value.0.as_str()).collect();
        validation.set_audience(&audience);
        Ok(Self { name: issuer.issuer.value.0.as_str().into(), validation, keys })
    }
}

/// Verifies a token; the error says, for the log, why it is not taken.
pub(super) fn verify<'a>(issuers: &'a [Issuer], token: &[u8]) -> Result<Verified<'a>, String> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(format!("the token is longer than {TOKEN_BYTES_MAX} bytes"));
    }
    let header = decode_header(token).map_err(|error| format!("no token: {error}"))?;
    // RFC 7515, section 4.1.11: what is critical has to be understood, and no extension is.
    if header.crit.is_some() {
        return Err("the token has extensions that are critical (`crit`)".to_owned());
    }
    let issued: Issued =
        insecure_decode_claims(token).map_err(|error| format!("no token: {error}"))?;
    let issuer = issuers.iter().find(|issuer| *issuer.name == *issued.iss);
    let issuer = issuer.ok_or("its issuer is not among `tokens`")?;
    if !issuer.validation.algorithms.contains(&header.alg) {
        return Err(format!("the algorithm {:?} is not allowed", header.alg));
    }
    let is_candidate = |key: &&Key| match (&header.kid, &key.id) {
        (Some(wanted), Some(id)) => wanted == id,
        _ => true,
    };
    let mut why = "none of the issuer's keys is the one that it names".to_owned();
    for candidate in issuer.keys.iter().filter(is_candidate).take(TRIES_MAX) {
        let mut validation = issuer.validation.clone();
        validation.algorithms = vec![header.alg];
        match decode::<Claims>(token, &candidate.key, &validation) {
            Ok(data) => {
                let until_s = (data.claims.exp.max(0.0) as u64).saturating_add(validation.leeway);
                return Ok(Verified { issuer: &issuer.name, subject: data.claims.sub, until_s });
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}
