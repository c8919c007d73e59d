"""How a client reaches its service: the address, who is trusted, who calls, and gRPC's options."""

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from vaeserve.errors import ConfigError

# What the environment's names of these settings begin with.
PREFIX = "VAESERVE_CLIENT_"

_TRUTHS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_SCHEMES = ("dns", "ipv4", "ipv6")
_LOCAL_SCHEMES = ("unix", "unix-abstract", "vsock")

OPTIONS: tuple[tuple[str, Any], ...] = (
    # The service has the limits.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Calls go to each of a name's addresses in turn: `dns:///` and a headless service of Kubernetes.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # Our own retries know no limit of five, nor of 256 KiB: docs/decisions/client.md.
    ("grpc.enable_retries", 0),
    # A restarted service is found within moments, and not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.dns_min_time_between_resolutions_ms", 2000),
    # A peer that vanished without a word is noticed while calls wait for it. The service takes pings of any rate.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


@dataclass(frozen=True)
class Tls:
    """Whom a client trusts, and the certificate that it shows; PEM files.

    ca: the authorities that the service's certificate must come from; None for those that gRPC ships with.
    certificate, key: the client's own, for mTLS: both or neither. server_name: the name that the service's certificate
    must have, where it isn't the target's.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            given, other = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise ConfigError(f"tls.{given}: without tls.{other}; expected both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files; raises ConfigError, naming the one that can't be read."""
        ca, key, certificate = (_pem(name, getattr(self, name)) for name in ("ca", "key", "certificate"))
        return grpc.ssl_channel_credentials(ca, key, certificate)


@dataclass(frozen=True)
class Connection:
    """A service's address, and how to speak to it; a token is shown to nobody but the service.

    allow_plaintext: let the token cross a network that isn't this machine's without TLS, where a mesh encrypts.
    """

    target: str
    tls: Tls | None = None
    token: str | None = field(default=None, repr=False)
    allow_plaintext: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.target, str) or not self.target:
            raise ConfigError(f"target: {self.target!r}; expected HOST:PORT, or dns:///HOST:PORT")
        if not isinstance(self.tls, Tls | None):
            raise ConfigError(f"tls: {self.tls!r}; expected Tls(ca=...), or Tls() for the authorities of gRPC")
        if self.token is None:
            return
        # Its value is in no message, for messages are logged.
        if not (isinstance(self.token, str) and re.fullmatch("[!-~]+", self.token)):
            raise ConfigError("token: not one that can be sent; expected printable ASCII without spaces")
        if self.tls is None and not self.allow_plaintext and not is_local(self.target):
            raise ConfigError(
                f"token: would cross the network to {self.target} as plain text; expected tls, or "
                "allow_plaintext=True where a proxy or mesh encrypts"
            )

    @classmethod
    def given(
        cls,
        target: str,
        tls: Tls | None,
        token: str | None,
        *,
        allow_plaintext: bool = False,
        environment: Mapping[str, str] = os.environ,
    ) -> Self:
        """Return the connection that arguments ask for, and where they don't, `VAESERVE_CLIENT_...`.

        Raises ConfigError, naming the variable, for a value that can't be.
        """
        settings = _Environment(environment)
        return cls(
            target,
            tls if tls is not None else settings.tls(),
            token if token is not None else settings.token(),
            allow_plaintext or settings.truth("ALLOW_PLAINTEXT"),
        )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call says of who makes it."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Read the files of TLS, if there is any; raises ConfigError as `Tls.credentials` does."""
        return self.tls.credentials() if self.tls else None

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """The channel's options, in gRPC's words."""
        name = self.tls.server_name if self.tls else ""
        return (*OPTIONS, ("grpc.ssl_target_name_override", name)) if name else OPTIONS


class _Environment:
    """The client's settings in the environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def tls(self) -> Tls | None:
        files = {name: self._text(f"TLS_{name.upper()}") for name in ("ca", "certificate", "key")}
        name = self._text("TLS_SERVER_NAME")
        if not (self.truth("TLS") or any(files.values()) or name):
            return None
        return Tls(**files, server_name=name or "")

    def token(self) -> str | None:
        token, file = self._text("TOKEN"), self._text("TOKEN_FILE")
        if token and file:
            raise ConfigError(f"{PREFIX}TOKEN and {PREFIX}TOKEN_FILE: expected one of them")
        return read_token(file) if file else token

    def truth(self, name: str) -> bool:
        text = self._text(name) or "false"
        if text.lower() not in _TRUTHS:
            raise ConfigError(f"{PREFIX}{name}: {text!r}; expected true or false")
        return _TRUTHS[text.lower()]

    def _text(self, name: str) -> str | None:
        return self._environment.get(PREFIX + name) or None


def read_token(path: str | Path) -> str:
    """Return the token that a file has on its one line; raises ConfigError, which never has it."""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token: {path}: {_reason(error)}; expected a file with the token") from None


def is_local(target: str) -> bool:
    """Tell whether a target is on this machine, so that nothing said to it crosses a network."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme in _LOCAL_SCHEMES:
        return True
    addresses = rest.rpartition("/")[2] if colon and scheme in _SCHEMES else target
    return all(_is_loopback(address) for address in addresses.split(","))


def _is_loopback(address: str) -> bool:
    host = address[1:].partition("]")[0] if address.startswith("[") else address
    if host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _pem(name: str, path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"tls.{name}: {path}: {_reason(error)}; expected a PEM file") from None
    if b"-----BEGIN" not in content:
        raise ConfigError(f"tls.{name}: {path}: no PEM in it; expected a PEM file")
    return content


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
