"""Runs the tests of the media engine, and of calls on it, against a real TURN server (coturn, the program `turnserver`).

Makes a certificate that the tests trust and lets cargo run them; the tests start and stop the servers themselves.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = f"{folder}/certificate.pem", f"{folder}/key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
             "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", certificate],
            check=True, capture_output=True,
        )
        os.chmod(folder, 0o755)
        os.chmod(key, 0o644)
        environment = os.environ | {
            "SSL_CERT_FILE": certificate,
            "TURN_TEST_CERTIFICATE": certificate,
            "TURN_TEST_KEY": key,
            "TURN_TEST_FOLDER": folder,
        }
        failed = 0
        for test, module in [("turn_server", ""), ("it", "line::")]:
            tests = ["cargo", "test", "--workspace", "--test", test, "--", "--ignored", module, *sys.argv[1:]]
            failed |= subprocess.run(tests, cwd=REPOSITORY, env=environment).returncode
        return failed


if __name__ == "__main__":
    sys.exit(main())
