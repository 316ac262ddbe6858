//! coturn, the program `turnserver`, for the tests that `tests/interop/turn/run.py` runs.

use std::{
    env,
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::timeout;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// A running server, which is stopped when it is dropped.
pub struct TurnServer {
    process: Child,
    port: u16,
    tls_port: u16,
}

fn free_port() -> u16 {
    // The port must be free for both, as the server uses the same number for UDP and TCP.
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let port = tcp.local_addr().expect("it is bound").port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl TurnServer {
    /// Starts a server with further arguments, and one user, `user`, whose password is `secret`.
    pub async fn start(more: &[&str]) -> Self {
        let (port, tls_port) = (free_port(), free_port());
        let certificate = env::var("TURN_TEST_CERTIFICATE").expect("run.py sets it");
        let key = env::var("TURN_TEST_KEY").expect("run.py sets it");
        let folder = env::var("TURN_TEST_FOLDER").expect("run.py sets it");
        let process = Command::new("turnserver")
            .args(["-n", "--no-cli", "--lt-cred-mech", "--fingerprint"])
            .args(["--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1"])
            .args(["--realm=example.org", "--user=user:secret"])
            .args(["--allow-loopback-peers", "--log-file=stdout"])
            .arg(format!("--listening-port={port}"))
            .arg(format!("--tls-listening-port={tls_port}"))
            .arg(format!("--cert={certificate}"))
            .arg(format!("--pkey={key}"))
            .arg(format!("--pidfile={folder}/{port}.pid"))
            .arg(format!("--userdb={folder}/{port}.sqlite"))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("turnserver is installed (Debian's package coturn)");
        let server = Self {
            process,
            port,
            tls_port,
        };
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        timeout(PATIENCE, async {
            while TcpStream::connect(("127.0.0.1", port)).is_err() {
                tick.tick().await;
            }
        })
        .await
        .expect("the TURN server listens");
        server
    }

    /// Its URLs for UDP, TCP and TLS.
    pub fn urls(&self) -> [String; 3] {
        [
            format!("turn:127.0.0.1:{}?transport=udp", self.port),
            format!("turn:127.0.0.1:{}?transport=tcp", self.port),
            format!("turns:127.0.0.1:{}?transport=tcp", self.tls_port),
        ]
    }
}

impl Drop for TurnServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
