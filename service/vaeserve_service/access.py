"""Who may call what: every RPC and page but the probes takes a scope, and a caller who has it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

import grpc

from vaeserve.errors import ConfigError
from vaeserve_service.callers import Caller, Callers
from vaeserve_service.config import AccessConfig, Scope, TlsConfig
from vaeserve_service.watched import Watched

# For probes, which have no credentials.
OPEN = frozenset({"grpc.health.v1.Health"})

SCOPES: dict[str, Scope] = {
    "vaeserve.v1.VaeService": "infer",
    "inference.GRPCInferenceService": "infer",
    "vaeserve.v1.ModelAdmin": "admin",
    "grpc.reflection.v1.ServerReflection": "reflection",
    "grpc.reflection.v1alpha.ServerReflection": "reflection",
}
# What a method takes that isn't as its service.
METHOD_SCOPES: dict[str, Scope] = {
    "inference.GRPCInferenceService/RepositoryModelLoad": "admin",
    "inference.GRPCInferenceService/RepositoryModelUnload": "admin",
}
# What a service that isn't among them takes.
STRONGEST: Scope = "admin"

UNAUTHENTICATED = (
    "credentials: none that the service knows; expected a bearer token or a client certificate of a caller"
)


class Reason(StrEnum):
    """Why a call was refused."""

    NO_CREDENTIALS = "no_credentials"
    UNKNOWN_CREDENTIALS = "unknown_credentials"
    NO_SCOPE = "no_scope"


@dataclass(frozen=True)
class Denial:
    """A refusal: which of the credentials was wrong is for the operator's metrics alone."""

    reason: Reason
    message: str

    @property
    def code(self) -> grpc.StatusCode:
        """The code for the caller."""
        permission = self.reason is Reason.NO_SCOPE
        return grpc.StatusCode.PERMISSION_DENIED if permission else grpc.StatusCode.UNAUTHENTICATED


class Access:
    """What the file of callers lets each of them do; a changed file holds from the next call on.

    on_denied: is told the scope and the reason of each refusal. Raises ConfigError, naming the setting and no
    credential.
    """

    def __init__(
        self, config: AccessConfig, file: Path, *, tls: TlsConfig, on_denied: Callable[[str, str], None]
    ) -> None:
        if tls.certificate is None and not config.allow_plaintext:
            raise ConfigError(
                "access.callers: tokens would cross the network as plain text; expected tls.certificate and tls.key, "
                "or access.allow_plaintext = true where a proxy or mesh encrypts"
            )
        self.asks_clients = tls.client_ca is not None
        self._anonymous = frozenset(config.anonymous)
        self._callers = Watched("access", [file], lambda: Callers.read(file, client_ca=self.asks_clients))
        self._on_denied = on_denied

    @classmethod
    def open(cls, config: AccessConfig, *, tls: TlsConfig, on_denied: Callable[[str, str], None]) -> Self | None:
        """Return the configured access, or None where anyone may do anything."""
        if config.callers:
            return cls(config, config.callers, tls=tls, on_denied=on_denied)
        if config.anonymous:
            raise ConfigError(
                f"access.anonymous: {', '.join(config.anonymous)}; expected access.callers too: without it all is open"
            )
        return None

    def current(self) -> bool:
        """Return whether the file could be read as it is now."""
        return self._callers.current()

    def needed(self, service: str, rpc: str) -> Scope | None:
        """Return the scope that a method takes, None where it takes no credentials."""
        if service in OPEN:
            return None
        scope = METHOD_SCOPES.get(f"{service}/{rpc}") or SCOPES.get(service, STRONGEST)
        return None if self.is_open(scope) else scope

    def is_open(self, scope: Scope) -> bool:
        """Return whether a scope takes no credentials."""
        return scope in self._anonymous

    def refusal(
        self, service: str, rpc: str, authorization: Sequence[str | bytes], names: Iterable[bytes]
    ) -> Denial | None:
        """Return why a call is refused, None if it isn't: by its token, or without one by its certificate's names."""
        scope = self.needed(service, rpc)
        if scope is None:
            return None
        if authorization or not self.asks_clients:
            return self.by_token(scope, authorization)
        return self.by_certificate(scope, names)

    def by_token(self, scope: Scope, authorization: Sequence[str | bytes]) -> Denial | None:
        """Return why a call with these `authorization` headers is refused, None if it isn't."""
        token = _bearer(authorization)
        return self._decide(scope, self._callers.get().by_token(token) if token else None, shown=bool(authorization))

    def by_certificate(self, scope: Scope, names: Iterable[bytes]) -> Denial | None:
        """Return why a call over a connection of a certificate with these names is refused, None if it isn't."""
        known = self._callers.get().by_certificate(name.decode(errors="replace") for name in names)
        return self._decide(scope, known, shown=True)

    def _decide(self, scope: Scope, caller: Caller | None, *, shown: bool) -> Denial | None:
        if caller is None:
            denial = Denial(Reason.UNKNOWN_CREDENTIALS if shown else Reason.NO_CREDENTIALS, UNAUTHENTICATED)
        elif scope not in caller.scopes:
            has = ", ".join(sorted(caller.scopes))
            denial = Denial(Reason.NO_SCOPE, f"scope: {caller.name} has {has}; this call takes {scope}")
        else:
            return None
        self._on_denied(scope, denial.reason)
        return denial


def _bearer(authorization: Sequence[str | bytes]) -> str | None:
    if len(authorization) != 1 or not isinstance(authorization[0], str):
        return None
    scheme, _, token = authorization[0].partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
