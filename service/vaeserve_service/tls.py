"""The service's certificate, on both ports, and the authorities that its gRPC callers' certificates must come from."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from vaeserve.errors import ConfigError
from vaeserve_service.config import TlsConfig
from vaeserve_service.watched import Watched

# What a client must have agreed on to speak HTTP/2.
ALPN = "h2"


@dataclass(frozen=True)
class _Loaded:
    """One state of the files, as each port takes it."""

    grpc: grpc.ServerCertificateConfiguration
    http: ssl.SSLContext
    http2: ssl.SSLContext
    expires: float


class Certificates:
    """The certificate that new connections are met with; connections that are open keep theirs.

    Raises ConfigError, naming the setting and never what is in the file.
    """

    def __init__(self, certificate: Path, key: Path, *, client_ca: Path | None) -> None:
        files = [path for path in (certificate, key, client_ca) if path]
        self._asks_clients = client_ca is not None
        self._loaded = Watched("tls", files, lambda: _load(certificate, key, client_ca))

    @classmethod
    def open(cls, config: TlsConfig) -> Self | None:
        """Return the configured certificates, or None where there are none; raises ConfigError for half of them."""
        if config.certificate and config.key:
            return cls(config.certificate, config.key, client_ca=config.client_ca)
        for name, path in config:
            if path:
                raise ConfigError(f"tls.{name}: set alone; expected tls.certificate and tls.key too")
        return None

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return credentials that look at the files in each handshake."""
        served = self._loaded.get()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            latest = self._loaded.get()
            if latest is served:
                return None
            served = latest
            return latest.grpc

        return grpc.dynamic_ssl_server_credentials(
            served.grpc,
            changed,  # type: ignore[arg-type] # None says that nothing has, which types-grpcio doesn't know
            require_client_authentication=self._asks_clients,
        )

    def http_context(self) -> ssl.SSLContext:
        """Return the context for a new connection to the HTTP port, which asks for no certificate: probes have none."""
        return self._loaded.get().http

    def http2_context(self) -> ssl.SSLContext:
        """Return the context for a new connection of HTTP/2, which asks for a certificate if configured."""
        return self._loaded.get().http2

    def expires(self) -> float:
        """Return when the first certificate of the chain expires, in seconds since the epoch."""
        return self._loaded.get().expires

    def current(self) -> bool:
        """Return whether the files could be read as they are now."""
        return self._loaded.current()


def _load(certificate: Path, key: Path, client_ca: Path | None) -> _Loaded:
    chain, private = _content("certificate", certificate), _content("key", key)
    certificates = _parse("certificate", certificate, chain)
    _check_key(certificates[0], private, where=f"tls.key: {key}", of=certificate)
    authorities = _content("client_ca", client_ca) if client_ca else None
    if client_ca and authorities:
        _parse("client_ca", client_ca, authorities)
    http, http2 = (_context(certificate, key) for _ in range(2))
    http2.set_alpn_protocols([ALPN])
    if client_ca and authorities:
        _trust(http2, authorities, client_ca)
    return _Loaded(
        grpc.ssl_server_certificate_configuration([(private, chain)], root_certificates=authorities),
        http,
        http2,
        min(each.not_valid_after_utc for each in certificates).timestamp(),
    )


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror
        raise ConfigError(f"tls.certificate: {certificate}: OpenSSL can't use it with tls.key: {reason}") from None
    return context


def _trust(context: ssl.SSLContext, authorities: bytes, path: Path) -> None:
    """Have a context take clients' certificates of these authorities alone: what was read of the file, and parsed."""
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cadata=authorities.decode("ascii", errors="ignore"))
    except ssl.SSLError as error:
        raise ConfigError(f"tls.client_ca: {path}: OpenSSL can't use it: {error.reason}") from None


def _content(name: str, path: Path) -> bytes:
    if "-----BEGIN" in str(path):
        raise ConfigError(f"tls.{name}: a PEM; expected the path of the file that holds it")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"tls.{name}: {path}: {error.strerror}; expected a PEM file") from None


def _parse(name: str, path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise ConfigError(f"tls.{name}: {path}: not readable as certificates; expected PEM") from None


def _check_key(certificate: x509.Certificate, content: bytes, *, where: str, of: Path) -> None:
    try:
        public = load_pem_private_key(content, password=None).public_key()
    except TypeError:
        raise ConfigError(f"{where}: encrypted; expected a key without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{where}: not readable as a private key; expected PEM") from None
    # What else there is, gRPC takes without a word, and then fails every handshake.
    if not isinstance(public, rsa.RSAPublicKey) and not (
        isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1 | ec.SECP384R1)
    ):
        raise ConfigError(f"{where}: of a kind that gRPC doesn't take; expected RSA, or ECDSA on P-256 or P-384")
    if public != certificate.public_key():
        raise ConfigError(f"{where}: not the key of {of}'s first certificate")
