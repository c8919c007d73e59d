"""The flags of every command that speaks to a service: whom to trust, and who it is that calls."""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from vaeserve.connection import PREFIX

C = TypeVar("C", bound=Callable[..., Any])

_File = Path | None
_FLAGS: dict[str, Any] = {
    "tls": Annotated[bool, typer.Option("--tls", help="Speak TLS, and trust the authorities that gRPC comes with.")],
    "tls_ca": Annotated[_File, typer.Option(help="Speak TLS, and trust the authorities of this PEM file.")],
    "tls_certificate": Annotated[_File, typer.Option(help="The PEM file of a certificate to show (mTLS).")],
    "tls_key": Annotated[_File, typer.Option(help="The PEM file of its key.")],
    "token_file": Annotated[_File, typer.Option(help="The file of a token to be known by.")],
}


def connects(command: C) -> C:
    """Give a command the flags; they are handed on as the settings of the environment that every client reads."""
    signature = inspect.signature(command)
    flags = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=False if name == "tls" else None, annotation=kind
        )
        for name, kind in _FLAGS.items()
    ]

    @functools.wraps(command)
    def connected(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in _FLAGS}
        os.environ.update({PREFIX + name.upper(): str(value) for name, value in given.items() if value})
        if given["token_file"]:
            os.environ.pop(f"{PREFIX}TOKEN", None)
        return command(*args, **kwargs)

    connected.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *flags])  # type: ignore[attr-defined]
    connected.__annotations__ = command.__annotations__ | _FLAGS
    return connected  # type: ignore[return-value]
