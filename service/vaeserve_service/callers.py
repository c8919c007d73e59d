"""The file of callers: what each is known by, and what it may do."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from vaeserve.config import Section, read_toml
from vaeserve.errors import ConfigError
from vaeserve_service.config import Scope

# A scanner for leaked secrets can tell it by this.
PREFIX = "vaeserve_"
_HASH = "sha256:"

TokenHash = Annotated[str, Field(pattern=f"^{_HASH}[0-9a-f]{{64}}$")]
CertificateName = Annotated[str, Field(min_length=1)]


class _Entry(Section):
    """`[NAME]` of the file."""

    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    tokens: tuple[TokenHash, ...] = ()
    certificates: tuple[CertificateName, ...] = ()


_ENTRIES = TypeAdapter(dict[str, _Entry])


@dataclass(frozen=True)
class Caller:
    """Who calls, and what for."""

    name: str
    scopes: frozenset[Scope]


class Callers:
    """The callers by what they are known by."""

    def __init__(self, tokens: Mapping[str, Caller], certificates: Mapping[str, Caller]) -> None:
        self._tokens = tuple(tokens.items())
        self._certificates = dict(certificates)

    @classmethod
    def read(cls, file: Path, *, client_ca: bool) -> "Callers":
        """Read the file of callers.

        client_ca: whether callers show certificates. Raises ConfigError, naming the place and no value.
        """
        try:
            entries = _ENTRIES.validate_python(read_toml(file))
        except ConfigError as error:
            raise ConfigError(f"access.callers: {error}") from None
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ConfigError(f"access.callers: {file}: {place}: {_expected(first['type'], first['msg'])}") from None
        if not entries:
            raise ConfigError(f"access.callers: {file}: nobody; expected a table [NAME] for each caller")
        tokens: dict[str, Caller] = {}
        certificates: dict[str, Caller] = {}
        for name, entry in entries.items():
            caller = Caller(name, entry.scopes)
            _add(tokens, entry.tokens, caller, f"access.callers: {file}: {name}.tokens")
            _add(certificates, entry.certificates, caller, f"access.callers: {file}: {name}.certificates")
            if entry.certificates and not client_ca:
                raise ConfigError(
                    f"access.callers: {file}: {name}.certificates: expected tls.client_ca too, or nobody shows one"
                )
        return cls(tokens, certificates)

    def by_token(self, token: str) -> Caller | None:
        """Return who has a token, in a time that doesn't tell how near it is to anyone's."""
        found, presented = None, hashed(token)
        for known, caller in self._tokens:
            if hmac.compare_digest(known, presented):
                found = caller
        return found

    def by_certificate(self, names: Iterable[str]) -> Caller | None:
        """Return who has a certificate of one of these names."""
        return next((self._certificates[name] for name in names if name in self._certificates), None)


def new_token() -> str:
    """Return a token of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(token: str) -> str:
    """Return what the file has of a token.

    A slow hash protects what people choose. Nobody guesses 256 random bits, and each call is hashed.
    """
    return _HASH + hashlib.sha256(token.encode()).hexdigest()


def _add(known: dict[str, Caller], values: Iterable[str], caller: Caller, where: str) -> None:
    for position, value in enumerate(values):
        if value in known:
            raise ConfigError(f"{where}.{position}: also {known[value].name}'s; expected each once")
        known[value] = caller


def _expected(kind: str, message: str) -> str:
    match kind:
        case "string_pattern_mismatch":
            return f"expected {_HASH} and 64 hex digits, as vaeserve token prints them"
        case "extra_forbidden":
            return "no such key; expected scopes, tokens or certificates"
        case "missing":
            return "not set"
        case _:
            return message
