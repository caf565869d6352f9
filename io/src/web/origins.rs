//! From which pages a browser may call (the `Origin` of RFC 6454 and the Fetch standard).
//!
//! A browser calls on behalf of whatever page is open in it, from inside networks that the page's author could not reach.
//! So a request that names an origin is refused unless that origin was allowed.

/// The pages that may call. Loopback ones, unless told otherwise: whoever can serve a page from this machine can also call
/// without a browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origins {
    any: bool,
    loopback: bool,
    listed: Vec<String>,
}

impl Default for Origins {
    fn default() -> Self {
        Self { any: false, loopback: true, listed: Vec::new() }
    }
}

/// Why an origin cannot be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidOrigin;

impl Origins {
    /// No page at all.
    pub fn none() -> Self {
        Self { any: false, loopback: false, listed: Vec::new() }
    }

    /// Allows one more: `*`, `loopback`, or an origin such as `https://console.example.com:8443`.
    pub fn allow(&mut self, origin: &str) -> Result<(), InvalidOrigin> {
        match origin {
            "*" => self.any = true,
            "loopback" => self.loopback = true,
            _ => {
                let (scheme, authority) = origin.split_once("://").ok_or(InvalidOrigin)?;
                let valid = matches!(scheme, "http" | "https")
                    && !authority.is_empty()
                    && authority.bytes().all(|byte| {
                        byte.is_ascii_lowercase()
                            || byte.is_ascii_digit()
                            || b".-:[]_".contains(&byte)
                    });
                if !valid {
                    return Err(InvalidOrigin);
                }
                self.listed.push(origin.to_owned());
            }
        }
        Ok(())
    }

    /// As it is written in configuration.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let any = self.any.then_some("*");
        let loopback = self.loopback.then_some("loopback");
        any.into_iter().chain(loopback).chain(self.listed.iter().map(String::as_str))
    }

    /// Whether a page of this origin may call.
    pub(crate) fn allows(&self, origin: &[u8]) -> bool {
        let Ok(origin) = std::str::from_utf8(origin) else { return false };
        // It is shown again in the answer.
        if origin.is_empty() || !origin.bytes().all(|byte| byte.is_ascii_graphic()) {
            return false;
        }
        self.any
            || self.listed.iter().any(|listed| listed == origin)
            || (self.loopback
                && origin.split_once("://").is_some_and(|(scheme, authority)| {
                    matches!(scheme, "http" | "https") && is_loopback(host_of(authority))
                }))
    }

    /// Whether a GET that names this host may call a method. A page whose own name leads to this machine (DNS rebinding) makes
    /// such requests without an `Origin`; but it cannot have a name without a dot, or an address for a name.
    pub(crate) fn trusts_host(&self, authority: &str) -> bool {
        let host = host_of(authority);
        self.any
            || is_loopback(host)
            || !host.contains('.')
            || host.parse::<std::net::Ipv4Addr>().is_ok()
            || self.listed.iter().any(|listed| {
                listed.split_once("://").is_some_and(|(_, listed)| host_of(listed) == host)
            })
    }
}

/// An authority without its port.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.split(':').next().unwrap_or(authority),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_pages_may_call_and_no_others() {
        let origins = Origins::default();
        for good in [
            "http://localhost",
            "http://localhost:3000",
            "https://127.0.0.1:8443",
            "http://127.1.2.3",
            "http://[::1]:5173",
            "http://app.localhost:3000",
        ] {
            assert!(origins.allows(good.as_bytes()), "{good}");
            assert!(!Origins::none().allows(good.as_bytes()), "{good}");
        }
        for bad in [
            "null",
            "",
            "http://example.com",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://example.com/localhost",
            "http://notlocalhost",
            "file://localhost",
            "localhost",
            "http://0.0.0.0",
            "http://localhost\n",
        ] {
            assert!(!origins.allows(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn listed_origins_are_compared_whole() {
        let mut origins = Origins::none();
        origins.allow("https://console.example.com").unwrap();
        assert!(origins.allows(b"https://console.example.com"));
        for bad in ["http://console.example.com", "https://console.example.com:8443", "null"] {
            assert!(!origins.allows(bad.as_bytes()), "{bad}");
        }
        assert!(origins.trusts_host("console.example.com:7400"));
        assert!(!origins.trusts_host("example.com"));
        for bad in
            ["", "example.com", "https://", "ftp://a", "https://a/b", "https://A", "https://*"]
        {
            assert_eq!(origins.allow(bad), Err(InvalidOrigin), "{bad}");
        }
        origins.allow("*").unwrap();
        assert!(origins.allows(b"null") && origins.trusts_host("evil.example"));
        assert_eq!(origins.names().collect::<Vec<_>>(), ["*", "https://console.example.com"]);
    }

    #[test]
    fn names_that_can_be_rebound_are_not_trusted() {
        let origins = Origins::default();
        for good in ["", "localhost:7400", "127.0.0.1", "10.1.2.3:7400", "[::1]:7400", "prism:7400"]
        {
            assert!(origins.trusts_host(good), "{good}");
        }
        for bad in ["evil.example:7400", "127.0.0.1.evil.example", "localhost.evil.example"] {
            assert!(!origins.trusts_host(bad), "{bad}");
        }
    }
}
