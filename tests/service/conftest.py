"""Certificates, two small bundles, and a repository in which versions of them come, change and go."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from filelock import FileLock

from tests.conftest import train_kind
from vaeserve.bundle import Bundle
from vaeserve_export.export import export

NAME = "table3"


@dataclass(frozen=True)
class Issued:
    """A certificate with its chain, and its key, both PEM."""

    chain: bytes
    key: bytes

    def write(self, folder: Path) -> None:
        """Write `tls.crt` and `tls.key`, as Kubernetes calls them."""
        (folder / "tls.crt").write_bytes(self.chain)
        (folder / "tls.key").write_bytes(self.key)


class Authority:
    """A certificate authority of a test."""

    def __init__(self, name: str, *, above: "Authority | None" = None, days: float = 3650) -> None:
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        signer = above or self
        builder = _certificate(self._name, signer._name, self._key.public_key(), days=days)
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        certificate = builder.add_extension(constraints, critical=True).sign(signer._key, hashes.SHA256())
        self.pem = certificate.public_bytes(Encoding.PEM)
        self._below = self.pem if above else b""

    def issue(
        self,
        name: str = "service",
        *,
        dns: Sequence[str] = ("localhost",),
        uris: Sequence[str] = (),
        days: float = 10,
        key: Any = None,
    ) -> Issued:
        """Return a certificate that is valid for `days` from now, or has not been for as many."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _certificate(subject, self._name, key.public_key(), days=days)
        names = [*map(x509.DNSName, dns), *map(x509.UniformResourceIdentifier, uris)]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Issued(
            certificate.public_bytes(Encoding.PEM) + self._below,
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )


def _certificate(subject: x509.Name, issuer: x509.Name, public_key: Any, *, days: float) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=abs(days) + 1))
        .not_valid_after(now + timedelta(days=days))
    )


@pytest.fixture(scope="session")
def new_authority() -> Callable[..., Authority]:
    """Make a certificate authority: `new_authority(name, above=..., days=...)`."""
    return Authority


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The authority that the tests' clients trust."""
    return Authority("authority")


@dataclass(frozen=True)
class Shelf:
    """A repository whose versions appear whole, as an export's do."""

    path: Path
    bundles: tuple[Bundle, Bundle]

    def add(self, version: int, *, bundle: int = 0, name: str = NAME) -> Path:
        """Let a version appear, of one of the bundles, and return its folder."""
        folder = self.path / name / str(version)
        aside = folder.with_name(f".{version}.partial")
        shutil.copytree(self.bundles[bundle].path, aside)
        aside.rename(folder)
        return folder


@pytest.fixture(scope="session")
def two_bundles(shared: Path) -> tuple[Bundle, Bundle]:
    """Two models that take the same rows and score them otherwise."""
    repository = shared / "two"
    for seed in (0, 1):
        with FileLock(shared / f"two {seed}.lock"):
            if not (repository / NAME / str(seed + 1)).exists():
                export(train_kind(NAME, shared / f"two {seed}", steps=20, seed=seed), repository, name=NAME)
    return Bundle.open(repository / NAME / "1"), Bundle.open(repository / NAME / "2")


@pytest.fixture
def shelf(two_bundles: tuple[Bundle, Bundle], tmp_path: Path) -> Shelf:
    """An empty repository."""
    (tmp_path / "shelf").mkdir()
    return Shelf(tmp_path / "shelf", two_bundles)
