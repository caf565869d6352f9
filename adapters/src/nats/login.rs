//! How a server is shown who we are, and whether it is one that will do.

use super::config::Login;
use super::errors::Outage;

/// The oldest server that has what is asked of it: atomic batches of messages, and their expiry.
const VERSION_MIN: (u64, u64) = (2, 12);

/// What a server is shown of a login.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) token: Option<String>,
    pub(super) jwt: Option<String>,
    pub(super) nkey: Option<String>,
    /// Of the server's nonce.
    pub(super) signature: Option<Vec<u8>>,
}

/// What a login comes to for a server that has sent this nonce.
///
/// # Errors
/// In words: what is wrong with the login.
pub(super) fn prove(login: Option<&Login>, nonce: &[u8]) -> Result<Proof, String> {
    let mut proof = Proof::default();
    match login {
        None => {}
        Some(Login::Password { user, password }) => {
            (proof.user, proof.password) = (Some(user.clone()), Some(password.clone()));
        }
        Some(Login::Token(token)) => proof.token = Some(token.clone()),
        Some(Login::NKey(seed)) => {
            let (key, signature) = sign(seed, nonce)?;
            (proof.nkey, proof.signature) = (Some(key), Some(signature));
        }
        Some(Login::Credentials(file)) => {
            let jwt = section(file, "NATS USER JWT").ok_or("there is no JWT in the credentials")?;
            let seed =
                section(file, "USER NKEY SEED").ok_or("there is no key in the credentials")?;
            let (_, signature) = sign(seed, nonce)?;
            (proof.jwt, proof.signature) = (Some(jwt.to_owned()), Some(signature));
        }
    }
    Ok(proof)
}

fn sign(seed: &str, nonce: &[u8]) -> Result<(String, Vec<u8>), String> {
    let key = nkeys::KeyPair::from_seed(seed.trim()).map_err(|error| error.to_string())?;
    let signature = key.sign(nonce).map_err(|error| error.to_string())?;
    Ok((key.public_key(), signature))
}

/// The line between the marks of a section of a credentials file.
fn section<'a>(file: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = file.lines().skip_while(|line| !line.contains(&format!("BEGIN {name}")));
    lines.next()?;
    lines.map(str::trim).find(|line| !line.is_empty()).filter(|line| !line.starts_with('-'))
}

/// Refuses a server that is too old.
pub(super) fn check_version(version: &str) -> Result<(), Outage> {
    let mut numbers = version.split(['.', '-']).map(|number| number.parse::<u64>().ok());
    let found = numbers.next().flatten().zip(numbers.next().flatten());
    match found.is_some_and(|found| found >= VERSION_MIN) {
        true => Ok(()),
        false => {
            let (major, minor) = VERSION_MIN;
            Err(Outage::too_old(version, &format!("{major}.{minor}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (version, is_enough) in [
            ("2.12.0", true),
            ("2.15.2", true),
            ("3.0.0-beta.1", true),
            ("2.9.25", false),
            ("2.11.99", false),
            ("", false),
            ("two", false),
        ] {
            assert_eq!(check_version(version).is_ok(), is_enough, "{version}");
        }
    }

    #[test]
    fn a_credentials_file_has_a_jwt_and_a_seed() {
        let file = "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.sig\n------END NATS USER JWT------\n\n\
                    ************************* IMPORTANT *************************\n\n\
                    -----BEGIN USER NKEY SEED-----\nSUAB\n------END USER NKEY SEED------\n";
        assert_eq!(section(file, "NATS USER JWT"), Some("eyJ0.eyJq.sig"));
        assert_eq!(section(file, "USER NKEY SEED"), Some("SUAB"));
        assert_eq!(section("", "USER NKEY SEED"), None);
        let empty = "-----BEGIN USER NKEY SEED-----\n------END USER NKEY SEED------\n";
        assert_eq!(section(empty, "USER NKEY SEED"), None);
    }

    #[test]
    fn every_login_is_shown_to_the_server() {
        let key = nkeys::KeyPair::new_user();
        let seed = key.seed().unwrap();
        let proof = prove(Some(&Login::NKey(seed.clone())), b"nonce").unwrap();
        key.verify(b"nonce", &proof.signature.unwrap()).unwrap();
        assert_eq!(proof.nkey, Some(key.public_key()));
        let file = format!(
            "-----BEGIN NATS USER JWT-----\na.b.c\n---\n-----BEGIN USER NKEY SEED-----\n{seed}\n---\n"
        );
        let proof = prove(Some(&Login::Credentials(file)), b"nonce").unwrap();
        key.verify(b"nonce", &proof.signature.unwrap()).unwrap();
        assert_eq!(proof.jwt.as_deref(), Some("a.b.c"));
        assert!(prove(Some(&Login::NKey("guess".to_owned())), b"nonce").is_err());
        let login = Login::Password { user: "u".to_owned(), password: "p".to_owned() };
        let proof = prove(Some(&login), b"").unwrap();
        assert_eq!((proof.user.as_deref(), proof.password.as_deref()), (Some("u"), Some("p")));
        let proof = prove(Some(&Login::Token("t".to_owned())), b"").unwrap();
        assert_eq!(proof, Proof { token: Some("t".to_owned()), ..Proof::default() });
        assert_eq!(prove(None, b""), Ok(Proof::default()));
    }
}
