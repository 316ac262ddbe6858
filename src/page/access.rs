//! Who may see the page: decided from the head of a request alone. Pure.
//!
//! With a token (`PAGE_TOKEN`) a request has to carry it, as a bearer token or as the cookie that
//! signing in gives. Without one the page is for this machine alone: it is served on loopback only,
//! and to requests that name this machine, so that a web site cannot reach it by a name of its own
//! that resolves to loopback (DNS rebinding). Requests that another site's pages make are refused
//! in any case.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use aws_lc_rs::{constant_time, hmac};
use axum::http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN};
use axum::http::{HeaderMap, Method};
use chrono::{DateTime, TimeDelta, Utc};

use crate::settings::Secret;

/// The variable that has the token.
pub const TOKEN_VARIABLE: &str = "PAGE_TOKEN";
/// A token that is shorter could be guessed.
const SHORTEST_TOKEN: usize = 16;
/// How long somebody stays signed in.
const SIGNED_IN_FOR: TimeDelta = TimeDelta::hours(12);

/// Who may see the page.
#[derive(Debug)]
pub struct Access {
    rule: Rule,
    /// Two workers on one machine share a browser's cookies: the port tells them apart.
    cookie: String,
}

#[derive(Debug)]
enum Rule {
    /// Nobody: the address is not loopback, and there is no token.
    Nobody,
    /// Whoever is on this machine.
    ThisMachine,
    /// Whoever has the token.
    Token { token: Secret, key: Box<hmac::Key> },
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The page is off.
    #[error(
        "the page is off: worker.http_bind is not loopback, and PAGE_TOKEN is not set (environment; at least 16 characters)"
    )]
    Off,
    /// `Host` is not this machine.
    #[error(
        "the page is served to this machine alone: open it as http://localhost or http://127.0.0.1, or set PAGE_TOKEN (environment)"
    )]
    Host,
    /// Another site's page makes the request.
    #[error("the request comes from the page of another site")]
    CrossSite,
    /// Neither cookie nor bearer token.
    #[error(
        "sign in first, or send the token (PAGE_TOKEN of the worker) as `Authorization: Bearer …`"
    )]
    NoToken,
    /// A wrong one.
    #[error("the token is not that of this worker (PAGE_TOKEN)")]
    WrongToken,
}

impl Access {
    /// The rule for a server at `bind`.
    ///
    /// # Errors
    /// When the token is too short; a sentence.
    pub fn new(bind: SocketAddr, token: Option<Secret>) -> Result<Self, String> {
        let rule = match token {
            Some(token) if token.expose().len() < SHORTEST_TOKEN => {
                return Err(format!(
                    "{TOKEN_VARIABLE} has fewer than {SHORTEST_TOKEN} characters, so it could be guessed: `openssl rand -hex 16` makes a good one"
                ));
            }
            Some(token) => Rule::Token {
                key: Box::new(hmac::Key::new(hmac::HMAC_SHA256, token.expose().as_bytes())),
                token,
            },
            None if bind.ip().is_loopback() => Rule::ThisMachine,
            None => Rule::Nobody,
        };
        Ok(Self {
            rule,
            cookie: format!("voicebot_page_{}", bind.port()),
        })
    }

    /// Whether nobody may see the page, see [`Refusal::Off`].
    pub fn is_off(&self) -> bool {
        matches!(self.rule, Rule::Nobody)
    }

    /// Whether a token is asked for.
    pub fn needs_token(&self) -> bool {
        matches!(self.rule, Rule::Token { .. })
    }

    /// Whether the request may have what everybody in front of the page may have: its files, and
    /// the form to sign in with.
    ///
    /// # Errors
    /// Why not.
    pub fn check_origin(&self, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
        match self.rule {
            Rule::Nobody => return Err(Refusal::Off),
            Rule::ThisMachine if !names_this_machine(headers) => return Err(Refusal::Host),
            Rule::ThisMachine | Rule::Token { .. } => {}
        }
        if is_cross_site(method, headers) {
            return Err(Refusal::CrossSite);
        }
        Ok(())
    }

    /// Whether the request may see and do what the page does.
    ///
    /// # Errors
    /// Why not.
    pub fn check(
        &self,
        method: &Method,
        headers: &HeaderMap,
        now: DateTime<Utc>,
    ) -> Result<(), Refusal> {
        self.check_origin(method, headers)?;
        let Rule::Token { key, .. } = &self.rule else {
            return Ok(());
        };
        if let Some(given) = bearer(headers) {
            return self.check_token(given);
        }
        let signed_in = cookies(headers)
            .filter(|(name, _)| *name == self.cookie)
            .any(|(_, value)| is_signed_in(key, value, now));
        if signed_in {
            Ok(())
        } else {
            Err(Refusal::NoToken)
        }
    }

    /// Compares a token with the worker's, in a time that does not tell how much of it is right.
    ///
    /// # Errors
    /// When it is another one.
    pub fn check_token(&self, given: &str) -> Result<(), Refusal> {
        let Rule::Token { token, .. } = &self.rule else {
            return Ok(());
        };
        constant_time::verify_slices_are_equal(given.as_bytes(), token.expose().as_bytes())
            .map_err(|_| Refusal::WrongToken)
    }

    /// The cookie of somebody who has signed in: when it ends, and a proof that we set it. The
    /// token is not in it.
    pub fn sign_in(&self, now: DateTime<Utc>) -> Option<String> {
        let Rule::Token { key, .. } = &self.rule else {
            return None;
        };
        let until = (now + SIGNED_IN_FOR).timestamp().to_string();
        let proof = hex(hmac::sign(key, until.as_bytes()).as_ref());
        Some(format!(
            "{}={until}.{proof}; Path=/page; Max-Age={}; HttpOnly; SameSite=Strict",
            self.cookie,
            SIGNED_IN_FOR.num_seconds()
        ))
    }

    /// A cookie that ends the other.
    pub fn sign_out(&self) -> String {
        format!(
            "{}=; Path=/page; Max-Age=0; HttpOnly; SameSite=Strict",
            self.cookie
        )
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Whether `Host` is a name or address of loopback. Any port: it may be that of a tunnel.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Ok(host) = host.to_str() else {
        return false;
    };
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if port.is_empty() || port.starts_with(':') => {
                return address.parse() == Ok(Ipv6Addr::LOCALHOST);
            }
            _ => return false,
        },
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Whether a page of another site makes this request, as far as the browser tells. Following a link
/// from another site to a page is none.
fn is_cross_site(method: &Method, headers: &HeaderMap) -> bool {
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    let site = header(headers, "sec-fetch-site");
    let is_foreign = matches!(site, Some("cross-site" | "same-site"));
    let is_link = is_read && header(headers, "sec-fetch-mode") == Some("navigate");
    if is_foreign && !is_link {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return false;
    };
    let own = header(headers, "host").unwrap_or_default();
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"));
    origin.is_none_or(|(_, authority)| !authority.eq_ignore_ascii_case(own))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
}

fn is_signed_in(key: &hmac::Key, cookie: &str, now: DateTime<Utc>) -> bool {
    let Some((until, proof)) = cookie.split_once('.') else {
        return false;
    };
    let Some(proof) = unhex(proof) else {
        return false;
    };
    // Compares in constant time.
    hmac::verify(key, until.as_bytes(), &proof).is_ok()
        && until
            .parse::<i64>()
            .is_ok_and(|until| until > now.timestamp())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|from| u8::from_str_radix(&text[from..from + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef-token";

    fn access(bind: &str, token: Option<&str>) -> Access {
        Access::new(bind.parse().unwrap(), token.map(Secret::new)).unwrap()
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    fn now() -> DateTime<Utc> {
        "2026-11-21T10:00:00Z".parse().unwrap()
    }

    #[test]
    fn who_may_see_the_page_without_a_token() {
        let get = Method::GET;
        let post = Method::POST;
        type Lines<'a> = &'a [(&'static str, &'a str)];
        let cases: [(&Method, Lines<'_>, Result<(), Refusal>); 21] = [
            (&get, &[("host", "127.0.0.1:8081")], Ok(())),
            (&get, &[("host", "localhost:9000")], Ok(())),
            (&get, &[("host", "LocalHost")], Ok(())),
            (&get, &[("host", "[::1]:8081")], Ok(())),
            (&get, &[("host", "[::1]")], Ok(())),
            (&get, &[("host", "127.3.2.1")], Ok(())),
            (&get, &[], Err(Refusal::Host)),
            (
                &get,
                &[("host", "rebound.example.com:8081")],
                Err(Refusal::Host),
            ),
            (
                &get,
                &[("host", "localhost.example.com")],
                Err(Refusal::Host),
            ),
            (
                &get,
                &[("host", "127.0.0.1.example.com")],
                Err(Refusal::Host),
            ),
            (&get, &[("host", "[::1].example.com")], Err(Refusal::Host)),
            (&get, &[("host", "[::2]:8081")], Err(Refusal::Host)),
            (&get, &[("host", "10.0.0.7:8081")], Err(Refusal::Host)),
            (
                &get,
                &[("host", "localhost"), ("host", "rebound.example.com")],
                Err(Refusal::Host),
            ),
            (
                &get,
                &[("host", "localhost:8081"), ("sec-fetch-site", "cross-site")],
                Err(Refusal::CrossSite),
            ),
            // Another program's page on the same machine.
            (
                &get,
                &[("host", "localhost:8081"), ("sec-fetch-site", "same-site")],
                Err(Refusal::CrossSite),
            ),
            (
                &get,
                &[
                    ("host", "localhost:8081"),
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                ],
                Ok(()),
            ),
            (
                &post,
                &[
                    ("host", "localhost:8081"),
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                ],
                Err(Refusal::CrossSite),
            ),
            (
                &post,
                &[
                    ("host", "localhost:8081"),
                    ("origin", "http://localhost:3000"),
                ],
                Err(Refusal::CrossSite),
            ),
            (
                &post,
                &[("host", "localhost:8081"), ("origin", "null")],
                Err(Refusal::CrossSite),
            ),
            (
                &post,
                &[
                    ("host", "localhost:8081"),
                    ("origin", "http://localhost:8081"),
                ],
                Ok(()),
            ),
        ];
        let here = access("127.0.0.1:8081", None);
        for (method, lines, expected) in cases {
            let found = here.check(method, &headers(lines), now());
            assert_eq!(found, expected, "{method} {lines:?}");
        }
        let anywhere = access("0.0.0.0:8081", None);
        assert!(anywhere.is_off());
        let found = anywhere.check(&get, &headers(&[("host", "localhost:8081")]), now());
        assert_eq!(found, Err(Refusal::Off));
    }

    #[test]
    fn who_may_see_the_page_with_a_token() {
        let page = access("0.0.0.0:8081", Some(TOKEN));
        let cookie = |at: DateTime<Utc>| {
            let cookie = page.sign_in(at).unwrap();
            cookie.split(';').next().unwrap().to_owned()
        };
        let good = cookie(now());
        assert!(!good.contains(TOKEN));
        let other_worker = access("0.0.0.0:8082", Some(TOKEN)).sign_in(now()).unwrap();
        let forged = access("0.0.0.0:8081", Some("another token of 16")).sign_in(now());
        let (until, proof) = good.split_once('.').unwrap();
        let until: i64 = until.split_once('=').unwrap().1.parse().unwrap();
        let longer = format!("voicebot_page_8081={}.{proof}", until + 1);
        let cases = [
            ("authorization", format!("Bearer {TOKEN}"), Ok(())),
            ("authorization", format!("bearer  {TOKEN} "), Ok(())),
            (
                "authorization",
                "Bearer wrong".to_owned(),
                Err(Refusal::WrongToken),
            ),
            (
                "authorization",
                format!("Bearer {TOKEN}x"),
                Err(Refusal::WrongToken),
            ),
            (
                "authorization",
                "Bearer ".to_owned(),
                Err(Refusal::WrongToken),
            ),
            ("authorization", TOKEN.to_owned(), Err(Refusal::NoToken)),
            (
                "authorization",
                format!("Basic {TOKEN}"),
                Err(Refusal::NoToken),
            ),
            ("cookie", format!("a=b; {good}"), Ok(())),
            (
                "cookie",
                cookie(now() - TimeDelta::hours(13)),
                Err(Refusal::NoToken),
            ),
            ("cookie", longer, Err(Refusal::NoToken)),
            ("cookie", other_worker, Err(Refusal::NoToken)),
            ("cookie", forged.unwrap(), Err(Refusal::NoToken)),
            (
                "cookie",
                "voicebot_page_8081=1.zz".to_owned(),
                Err(Refusal::NoToken),
            ),
            (
                "cookie",
                "voicebot_page_8081=".to_owned(),
                Err(Refusal::NoToken),
            ),
            (
                "cookie",
                format!("voicebot_page_8081={TOKEN}"),
                Err(Refusal::NoToken),
            ),
            ("x-token", TOKEN.to_owned(), Err(Refusal::NoToken)),
        ];
        for (name, value, expected) in cases {
            let lines = headers(&[("host", "worker.example.com:8081"), (name, &value)]);
            assert_eq!(
                page.check(&Method::GET, &lines, now()),
                expected,
                "{name}: {value}"
            );
        }
        let with_token = format!("Bearer {TOKEN}");
        let foreign = headers(&[
            ("host", "worker.example.com"),
            ("origin", "https://example.com"),
            ("authorization", &with_token),
        ]);
        let found = page.check(&Method::POST, &foreign, now());
        assert_eq!(found, Err(Refusal::CrossSite));
    }

    #[test]
    fn a_short_token_is_refused_with_what_to_do() {
        let bind = "127.0.0.1:8081".parse().unwrap();
        let why = Access::new(bind, Some(Secret::new("short"))).unwrap_err();
        assert!(
            why.contains("PAGE_TOKEN") && why.contains("openssl"),
            "{why}"
        );
        assert!(!why.contains("short\""), "{why}");
    }
}
