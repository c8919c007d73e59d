"""Flags that several commands have, written once: of all that speak to a service, and the means to give others some."""

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from vaeserve.connection import PREFIX

C = TypeVar("C", bound=Callable[..., Any])

Values = dict[str, Any]
# The value of a flag that must be given.
REQUIRED: Any = inspect.Parameter.empty
_File = Path | None


class Flag(NamedTuple):
    """An argument or option of a command: its annotated type, and its value where it isn't given."""

    kind: Any
    default: Any = None


_CONNECTION = {
    "tls": Flag(
        Annotated[bool, typer.Option("--tls", help="Speak TLS, and trust the authorities that gRPC comes with.")], False
    ),
    "tls_ca": Flag(Annotated[_File, typer.Option(help="Speak TLS, and trust the authorities of this PEM file.")]),
    "tls_certificate": Flag(Annotated[_File, typer.Option(help="The PEM file of a certificate to show (mTLS).")]),
    "tls_key": Flag(Annotated[_File, typer.Option(help="The PEM file of its key.")]),
    "token_file": Flag(Annotated[_File, typer.Option(help="The file of a token to be known by.")]),
}


def with_flags(
    command: Callable[..., Any],
    flags: Mapping[str, Flag],
    call: Callable[[Values, Values], Any],
    *,
    in_place_of: str | None = None,
) -> Any:
    """Return a command with more flags, done by `call` with their values and with the command's own arguments.

    in_place_of: the command's argument that the flags stand for.
    """
    signature = inspect.signature(command)
    own = [parameter for name, parameter in signature.parameters.items() if name != in_place_of]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=flag.default, annotation=flag.kind)
        for name, flag in flags.items()
    ]

    @functools.wraps(command)
    def done(**arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in flags}
        return call(given, arguments)

    parameters = [*own, *added] if in_place_of is None else [*added, *own]
    named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    done.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
    done.__annotations__ = {parameter.name: parameter.annotation for parameter in named}
    return done


def connects(command: C) -> C:
    """Give a command the flags; they are handed on as the settings of the environment that every client reads."""

    def call(given: Values, arguments: Values) -> Any:
        os.environ.update({PREFIX + name.upper(): str(value) for name, value in given.items() if value})
        if given["token_file"]:
            os.environ.pop(f"{PREFIX}TOKEN", None)
        return command(**arguments)

    connected: C = with_flags(command, _CONNECTION, call)
    return connected
