//! Addresses of STUN and TURN servers, as configurations write them (RFC 7064, RFC 7065).

use crate::peer_connection_factory::IceServer;

/// The transport to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerTransport {
    Udp,
    Tcp,
    Tls,
}

/// What a server is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Service {
    /// The address under which a socket is seen from outside.
    Stun,
    /// A relay, with the credentials for it.
    Turn { username: String, password: String },
}

/// One server URL of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// As in the configuration.
    pub url: String,
    pub service: Service,
    pub transport: ServerTransport,
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
}

/// Parses the servers of a configuration; for those that cannot be used, returns the URL and the
/// reason.
pub(crate) fn servers(configured: &[IceServer]) -> Vec<Result<Server, (String, String)>> {
    let urls = configured
        .iter()
        .flat_map(|server| server.urls.iter().map(move |url| (server, url)));
    urls.map(|(server, url)| {
        Server::parse(url, &server.username, &server.password).map_err(|why| (url.clone(), why))
    })
    .collect()
}

impl Server {
    fn parse(url: &str, username: &str, password: &str) -> Result<Self, String> {
        let (scheme, rest) = url
            .split_once(':')
            .ok_or("an address of a STUN or TURN server begins with stun:, turn: or turns:")?;
        let (place, query) = match rest.split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (rest, None),
        };
        let scheme = scheme.to_ascii_lowercase();
        let asked = match query {
            None => None,
            Some("transport=udp") => Some(ServerTransport::Udp),
            Some("transport=tcp") => Some(ServerTransport::Tcp),
            Some(query) => {
                return Err(format!(
                    "“{query}” is not understood: ?transport=udp or ?transport=tcp can stand here"
                ));
            }
        };
        let transport = match (scheme.as_str(), asked) {
            ("stun", None | Some(ServerTransport::Udp)) | ("turn", None) => ServerTransport::Udp,
            ("turn", Some(transport)) => transport,
            ("turns", None | Some(ServerTransport::Tcp)) => ServerTransport::Tls,
            ("turns", _) => return Err("TURN over DTLS is not supported".to_owned()),
            ("stun" | "stuns", _) => return Err("STUN is supported over UDP only".to_owned()),
            _ => return Err(format!("“{scheme}:” is none of stun:, turn: and turns:")),
        };
        let service = match scheme.as_str() {
            "stun" => Service::Stun,
            _ if username.is_empty() || password.is_empty() => {
                return Err("a TURN server needs a user name and a password".to_owned());
            }
            _ => Service::Turn {
                username: username.to_owned(),
                password: password.to_owned(),
            },
        };
        let default_port = match transport {
            ServerTransport::Tls => 5349,
            _ => 3478,
        };
        let (host, port) = split_port(place)?;
        Ok(Self {
            url: url.to_owned(),
            service,
            transport,
            host: host.to_owned(),
            port: port.unwrap_or(default_port),
        })
    }
}

fn split_port(place: &str) -> Result<(&str, Option<u16>), String> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("the bracket is not closed")?;
            let port = match port.strip_prefix(':') {
                None if port.is_empty() => None,
                None => return Err(format!("“{port}” behind the bracket is no port")),
                Some(port) => Some(port),
            };
            (host, port)
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    if host.is_empty() {
        return Err("the host is missing".to_owned());
    }
    let port = match port {
        None => None,
        Some(text) => match text.parse() {
            Ok(port @ 1..) => Some(port),
            _ => return Err(format!("“{text}” is no port")),
        },
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_standards_write_them() {
        use ServerTransport::{Tcp, Tls, Udp};
        for (url, host, port, transport) in [
            ("stun:stun.example.org", "stun.example.org", 3478, Udp),
            ("STUN:192.0.2.1:19302", "192.0.2.1", 19302, Udp),
            ("turn:[2001:db8::1]:3479", "2001:db8::1", 3479, Udp),
            ("turn:[2001:db8::1]", "2001:db8::1", 3478, Udp),
            ("turn:a.example?transport=udp", "a.example", 3478, Udp),
            ("turn:a.example:80?transport=tcp", "a.example", 80, Tcp),
            ("turns:a.example", "a.example", 5349, Tls),
            ("turns:a.example:443?transport=tcp", "a.example", 443, Tls),
        ] {
            let server = Server::parse(url, "user", "secret").expect(url);
            assert_eq!(
                (&*server.host, server.port, server.transport),
                (host, port, transport),
                "{url}"
            );
            assert_eq!(
                server.service == Service::Stun,
                url.to_lowercase().starts_with("stun"),
                "{url}"
            );
        }
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        for (url, why) in [
            ("a.example", "begins with"),
            ("http:a.example", "none of"),
            ("turn:", "host is missing"),
            ("turn:a.example:0", "no port"),
            ("turn:a.example:port", "no port"),
            ("turn:[::1", "bracket"),
            ("turn:[::1]3478", "bracket"),
            ("turn:a.example?transport=sctp", "transport=sctp"),
            ("turns:a.example?transport=udp", "DTLS"),
            ("stuns:a.example", "UDP only"),
        ] {
            let error = Server::parse(url, "user", "secret").expect_err(url);
            assert!(error.contains(why), "{url}: {error}");
        }
        assert!(Server::parse("turn:a.example", "", "").is_err());
    }
}
