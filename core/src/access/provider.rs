//! The cryptography of tokens: ring's, as that of TLS. Verifies; never signs.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::signature as of_ring;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: verifier,
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: |_| Err(ErrorKind::UnsupportedAlgorithm.into()),
        rsa_pub_components_from_public_key: |_| Err(ErrorKind::UnsupportedAlgorithm.into()),
        ec_pub_components_from_private_key: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
        ed_pub_components_from_private_key: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
        compute_digest: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    },
};

/// Makes tokens verifiable. May be called any number of times.
pub(super) fn install() {
    // The one that is there already is this one: nobody else in this process installs any.
    let _ = PROVIDER.install_default();
}

struct OfRing {
    algorithm: Algorithm,
    key: DecodingKey,
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    if key.family() != family(*algorithm)? {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(Box::new(OfRing { algorithm: *algorithm, key: key.clone() }))
}

fn family(algorithm: Algorithm) -> Result<jsonwebtoken::AlgorithmFamily, Error> {
    use jsonwebtoken::AlgorithmFamily::{Ec, Ed, Rsa};
    match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => Ok(Ec),
        Algorithm::EdDSA => Ok(Ed),
        Algorithm::RS256
        | Algorithm::RS384
        | Algorithm::RS512
        | Algorithm::PS256
        | Algorithm::PS384
        | Algorithm::PS512 => Ok(Rsa),
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}

impl JwtVerifier for OfRing {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for OfRing {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let verified = match self.key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                let of_rsa = match self.algorithm {
                    Algorithm::RS256 => &of_ring::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::RS384 => &of_ring::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::RS512 => &of_ring::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::PS256 => &of_ring::RSA_PSS_2048_8192_SHA256,
                    Algorithm::PS384 => &of_ring::RSA_PSS_2048_8192_SHA384,
                    Algorithm::PS512 => &of_ring::RSA_PSS_2048_8192_SHA512,
                    _ => return Err(signature::Error::new()),
                };
                of_ring::RsaPublicKeyComponents { n, e }.verify(of_rsa, message, signature)
            }
            DecodingKeyKind::SecretOrDer(key) => {
                let of_curve: &dyn of_ring::VerificationAlgorithm = match self.algorithm {
                    Algorithm::ES256 => &of_ring::ECDSA_P256_SHA256_FIXED,
                    Algorithm::ES384 => &of_ring::ECDSA_P384_SHA384_FIXED,
                    Algorithm::EdDSA => &of_ring::ED25519,
                    _ => return Err(signature::Error::new()),
                };
                of_ring::UnparsedPublicKey::new(of_curve, key).verify(message, signature)
            }
        };
        verified.map_err(|_| signature::Error::new())
    }
}
