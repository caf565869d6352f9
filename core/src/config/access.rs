//! What a platform file says of who may call: whose tokens are taken, who is who, and who may do what.

use super::described::{Name, Span, Text};
use super::error::Problem;
use super::platform::Platform;
use super::request::{Api, Who};
use super::tree::{Report, Setting};
use crate::{choices, section};

section! {
    /// Tokens (JWT) of one issuer that are taken in the metadata `authorization: Bearer …`.
    pub struct TokenIssuer {
        /// What stands in their `iss`.
        pub issuer: Setting<Text>,
        /// What has to be in their `aud`: one of these.
        pub audience: Vec<Setting<Text>>,
        /// Its public keys, a JSON Web Key Set: a file, or a URL (`https://`, or `http://` on this machine).
        pub keys: Setting<Text>,
        /// PEM: the authorities that the URL's server has to lead to, instead of those that this system trusts.
        pub keys_ca: Option<Setting<Text>>,
        /// How often the URL is asked again; 5min unless said otherwise.
        pub keys_refresh: Option<Setting<Span>>,
        /// The algorithms that are taken; without the key ES256, RS256 and EdDSA.
        pub algorithms: Vec<Setting<TokenAlgorithm>>,
        /// How far its clock may be from ours; 30s unless said otherwise.
        pub clock_skew: Option<Setting<Span>>,
    }
}

choices! {
    /// How a token is signed. Only what takes a public key to verify.
    pub enum TokenAlgorithm {
        /// ECDSA on P-256.
        Es256 = "ES256",
        /// ECDSA on P-384.
        Es384 = "ES384",
        /// Ed25519.
        EdDsa = "EdDSA",
        /// RSA with PKCS #1 v1.5 and SHA-256.
        Rs256 = "RS256",
        /// RSA with PKCS #1 v1.5 and SHA-384.
        Rs384 = "RS384",
        /// RSA with PKCS #1 v1.5 and SHA-512.
        Rs512 = "RS512",
        /// RSA-PSS with SHA-256.
        Ps256 = "PS256",
        /// RSA-PSS with SHA-384.
        Ps384 = "PS384",
        /// RSA-PSS with SHA-512.
        Ps512 = "PS512",
    }
}

section! {
    /// Whose calls are those of a team, or of one of its services.
    pub struct CallerIdentity {
        /// The SPIFFE id of a certificate, or the `sub` of a token. With `*` at its end: all that begin so.
        pub id: Setting<Text>,
        /// The issuer, where it is a token's.
        pub issuer: Option<Setting<Text>>,
        /// The team.
        pub team: Setting<Name>,
        /// The service.
        pub service: Option<Setting<Name>>,
    }
}

choices! {
    /// What a grant allows.
    pub enum GrantMay {
        /// To read.
        Read = "read",
        /// To read and write.
        Write = "write",
        /// All, also to change the namespace.
        Admin = "admin",
    }
}

section! {
    /// What a team or a service may do, beside what requests say under `access`.
    pub struct Grant {
        /// The team.
        pub team: Option<Setting<Name>>,
        /// Or the service.
        pub service: Option<Setting<Name>>,
        /// The namespace. With `*` at its end: all that begin so.
        pub namespace: Setting<Text>,
        /// Only where it serves this.
        pub api: Option<Setting<Api>>,
        /// What.
        pub may: Setting<GrantMay>,
    }
}

impl Grant {
    /// To whom; exactly one is named, or the file was refused.
    pub fn who(&self) -> Option<Who> {
        match (&self.team, &self.service) {
            (Some(team), None) => Some(Who::Team(team.value.clone())),
            (None, Some(service)) => Some(Who::Service(service.value.clone())),
            _ => None,
        }
    }
}

choices! {
    /// From where callers are taken who do not say who they are.
    pub enum AnonymousFrom {
        /// From this machine.
        Loopback = "loopback",
        /// From everywhere.
        Anywhere = "anywhere",
    }
}

section! {
    /// Callers who do not say who they are. Without this section they are refused once identities are configured.
    pub struct Anonymous {
        /// From where.
        pub from: Setting<AnonymousFrom>,
        /// The namespaces that they may call. With `*` at its end: all that begin so.
        pub namespace: Setting<Text>,
        /// What they may do.
        pub may: Setting<GrantMay>,
    }
}

/// Relations between what stands there.
pub(super) fn check(platform: &Platform, report: &Report) {
    let issuers = &platform.tokens;
    for (index, issuer) in issuers.iter().enumerate() {
        let name = &issuer.issuer;
        if issuers[..index].iter().any(|other| other.issuer.value == name.value) {
            let message = format!("the issuer `{}` is there twice", name.value);
            report.error(name.origin, Problem::new(message, "leave one of them out"));
        }
        check_keys(issuer, report);
        if issuer.audience.is_empty() {
            let message = format!("tokens of `{}` are taken for no audience", name.value);
            let remedy = "add `audience: [NAME]` with what their `aud` says of this Prism";
            report.error(name.origin, Problem::new(message, remedy));
        }
    }
    let identities = &platform.identities;
    for (index, identity) in identities.iter().enumerate() {
        let id = &identity.id;
        let issuer = |of: &CallerIdentity| of.issuer.as_ref().map(|issuer| issuer.value.0.clone());
        let is_same = |other: &&CallerIdentity| {
            other.id.value == id.value && issuer(other) == issuer(identity)
        };
        if identities[..index].iter().any(|other| is_same(&other)) {
            let message = format!("the identity `{}` is there twice", id.value);
            report.error(id.origin, Problem::new(message, "leave one of them out"));
        }
        match &identity.issuer {
            Some(issuer) if !issuers.iter().any(|known| known.issuer.value == issuer.value) => {
                let message = format!("the issuer `{}` is not among `tokens`", issuer.value);
                let remedy = "add it there, with its audience and its keys";
                report.error(issuer.origin, Problem::new(message, remedy));
            }
            Some(_) => {}
            None => check_spiffe_id(id, report),
        }
    }
    for grant in &platform.grants {
        if grant.who().is_none() {
            let message = "a grant is for a team or for a service: one of them, not both";
            let remedy = "write `team: NAME` or `service: NAME`";
            report.error(grant.namespace.origin, Problem::new(message, remedy));
        }
    }
}

/// A URL is one that can be asked, and what is for URLs stands beside one.
fn check_keys(issuer: &TokenIssuer, report: &Report) {
    let keys = &issuer.keys;
    if keys.value.0.contains("://") {
        if let Err(error) = prism_io::http1::fetch::Url::parse(&keys.value.0) {
            let message = format!("`{}` cannot be asked for keys: {error}", keys.value);
            let remedy =
                "write https://HOST/PATH, http://127.0.0.1:PORT/PATH, or the path of a file";
            report.error(keys.origin, Problem::new(message, remedy));
        }
        return;
    }
    let ca = issuer.keys_ca.as_ref().map(|ca| ("keys_ca", ca.origin));
    let refresh = issuer.keys_refresh.map(|refresh| ("keys_refresh", refresh.origin));
    for (key, origin) in [ca, refresh].into_iter().flatten() {
        let message = format!("`{key}` is for keys at a URL, and these are in a file");
        report.error(origin, Problem::new(message, "leave it out"));
    }
}

fn check_spiffe_id(id: &Setting<Text>, report: &Report) {
    let text = id.value.0.as_str();
    let whole = match text.strip_suffix('*') {
        // What it leaves open may be anything, but the trust domain is never left open.
        Some(begin) if begin.matches('/').count() > 2 => format!("{begin}a"),
        Some(_) => String::new(),
        None => text.to_owned(),
    };
    if !prism_io::tls::is_spiffe_id(&whole) {
        let message = format!("`{text}` is not a SPIFFE id");
        let remedy = "write one such as `spiffe://example.org/payments/checkout`, or add `issuer` if it is a token's";
        report.error(id.origin, Problem::new(message, remedy));
    }
}
