"""A TLS stub of the `@connections` endpoint: nginx, which is faster than every client measured here."""

import contextlib
import datetime
import ipaddress
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_ECHO_MODULE = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")

_CONFIGURATION = """
{load}
daemon off;
worker_processes 1;
worker_cpu_affinity {affinity};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 100000000;
  client_body_temp_path {folder}/body;
  server {{
    listen 127.0.0.1:{port} ssl http2;
    server_name localhost;
    ssl_certificate {folder}/certificate.pem;
    ssl_certificate_key {folder}/key.pem;
    location / {{ return 200; }}
    {slow}
  }}
}}
"""


class Missing(Exception):
    """A program that the benchmark needs is not installed. The text names it and its Debian package."""


@dataclass(frozen=True)
class Stub:
    """A running stub. `endpoint` answers at once, `slow_endpoint` after 15 ms. `authority` is its CA file."""

    endpoint: str
    slow_endpoint: str | None
    authority: Path


def require(program: str, package: str) -> str:
    """Return the path of a program. Raises `Missing`."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if not found:
        raise Missing(f"{program} is not installed: on Debian, apt-get install {package}")
    return found


@contextlib.contextmanager
def running(cpu: int) -> Iterator[Stub]:
    """Run the stub on one processor during the `with` block."""
    nginx = require("nginx", "nginx-light libnginx-mod-http-echo")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _certify(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        echo = _ECHO_MODULE.exists()
        configuration = _CONFIGURATION.format(
            folder=folder,
            port=port,
            affinity=f"{1 << cpu:b}",
            load=f"load_module {_ECHO_MODULE};" if echo else "",
            # "return" answers with a Content-Length, as API Gateway does. "echo" would send chunks.
            slow="location /slow/ { echo_sleep 0.015; echo_exec /live; }" if echo else "",
        )
        (folder / "nginx.conf").write_text(configuration)
        process = subprocess.Popen([nginx, "-p", name, "-c", "nginx.conf"], stderr=subprocess.DEVNULL)
        try:
            _wait(port, folder / "certificate.pem")
            base = f"https://localhost:{port}"
            yield Stub(f"{base}/live", f"{base}/slow/live" if echo else None, folder / "certificate.pem")
        finally:
            process.terminate()
            process.wait()


def _certify(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def _wait(port: int, authority: Path) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    deadline = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as raw:
                context.wrap_socket(raw, server_hostname="localhost").close()
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
