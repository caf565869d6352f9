//! Bearer tokens (JWT, RFC 7519): whose are taken, and what has to hold for one.
//!
//! A token is taken if it is signed with one of its issuer's keys by an algorithm that is allowed for it, is meant for us, and
//! holds now, give or take the skew that the issuer's clock may have. The keys are public: what would verify with a secret, or
//! with nothing (`alg: none`), is never taken.

use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use prism_io::http1::fetch::Url;
use prism_io::tls::Roots;
use serde::Deserialize;

use super::keys::{KeyStore, REFRESH, Remote};
use super::provider;
use crate::config::access::{TokenAlgorithm, TokenIssuer};

/// Longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Largest file of keys, in bytes.
pub(super) const KEYS_BYTES_MAX: u64 = 1 << 20;
/// Most keys that one issuer may have.
const KEYS_MAX: usize = 64;
/// Most keys that are tried for one token that does not name its own.
const TRIES_MAX: usize = 4;
/// How far an issuer's clock may be from ours, unless it says otherwise, in seconds.
const SKEW_S: u64 = 30;

/// An issuer, and what its tokens are held to.
#[derive(Debug, Clone)]
pub(super) struct Issuer {
    name: Box<str>,
    validation: Validation,
    keys: Vec<Key>,
    /// Where they are, if not in a file.
    pub(super) remote: Option<Remote>,
}

/// A key that verifies.
#[derive(Debug, Clone)]
pub(super) struct Key {
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
    /// Reads the keys of an issuer, or takes those that were got from its URL.
    pub(super) fn load(issuer: &TokenIssuer, store: &KeyStore) -> Result<Self, String> {
        provider::install();
        let remote = remote(issuer)?;
        let keys = match &remote {
            Some(remote) => store.known(remote),
            None => read_keys(&issuer.keys.value.0).map_err(|error| {
                format!("{error}; give the JSON Web Key Set of {}", issuer.issuer.value.0)
            })?,
        };
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
        Ok(Self { name: issuer.issuer.value.0.as_str().into(), validation, keys, remote })
    }

    /// The same with the last good keys of its URL, where it has one.
    pub(super) fn with_keys_of(&self, store: &KeyStore) -> Self {
        let keys = self.remote.as_ref().map(|remote| store.last(remote));
        Self { keys: keys.unwrap_or_else(|| self.keys.clone()), ..self.clone() }
    }
}

/// Where an issuer's keys are, if not in a file.
fn remote(issuer: &TokenIssuer) -> Result<Option<Remote>, String> {
    let text = &issuer.keys.value.0;
    if !text.contains("://") {
        return Ok(None);
    }
    let url = Url::parse(text).map_err(|error| format!("{text}: {error}"))?;
    let roots = issuer.keys_ca.as_ref().map(|file| Roots::File(file.value.0.as_str().into()));
    let refresh = issuer.keys_refresh.map_or(REFRESH, |span| span.value.0);
    Ok(Some(Remote { url, roots: roots.unwrap_or(Roots::System), refresh }))
}

fn read_keys(path: &str) -> Result<Vec<Key>, String> {
    let unreadable = |error: std::io::Error| format!("{path}: cannot be read: {error}");
    if std::fs::metadata(path).map_err(unreadable)?.len() > KEYS_BYTES_MAX {
        return Err(format!("{path}: larger than {KEYS_BYTES_MAX} bytes"));
    }
    let text = std::fs::read(path).map_err(unreadable)?;
    keys_of(&text).map_err(|error| format!("{path}: {error}"))
}

/// The public keys of a JSON Web Key Set (RFC 7517).
pub(super) fn keys_of(text: &[u8]) -> Result<Vec<Key>, String> {
    let set: JwkSet = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let is_public = |parameters: &AlgorithmParameters| {
        !matches!(parameters, AlgorithmParameters::OctetKey(_) | AlgorithmParameters::Other(_))
    };
    let keys = set.keys.iter().filter(|key| is_public(&key.algorithm)).map(|key| {
        let id = key.common.key_id.clone();
        DecodingKey::from_jwk(key).map(|key| Key { id, key })
    });
    let keys: Vec<Key> = keys.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if keys.is_empty() || keys.len() > KEYS_MAX {
        return Err(format!("{} public keys, not 1 to {KEYS_MAX}", keys.len()));
    }
    Ok(keys)
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
