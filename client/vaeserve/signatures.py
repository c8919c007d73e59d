"""What the models take, remembered, so that calls with named columns needn't ask each time."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from vaeserve.errors import InvalidInputError, NotFoundError
from vaeserve.messages import ModelInfo
from vaeserve.parts import Arrays
from vaeserve.signature import Rows

# Asks the service for a model's version.
Ask = Callable[[str, str], Awaitable[ModelInfo]]


class Versioned(Protocol):
    """An answer that says which version of the model gave it."""

    @property
    def version(self) -> str:
        """The version."""
        ...


A = TypeVar("A", bound=Versioned)


class Signatures:
    """The signatures of models by their name and version, the empty version standing for the newest.

    Columns are put in the order of the signature that is known, and the answer says which version gave it. Where that
    is another, which may have them in another order, the answer is worth nothing: docs/decisions/pinned-columns.md.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], ModelInfo] = {}

    async def call(
        self, model: str, version: str, rows: Rows, *, send: Callable[[str, Arrays], Awaitable[A]], ask: Ask
    ) -> A:
        """Return what `send` gives for a version and its input tensors, made of rows with named columns.

        Raises InvalidInputError, naming the column, where they don't fit.
        """
        known = self._known.get((model, version))
        if known is None:
            return await self._pinned(model, version, rows, send=send, ask=ask)
        try:
            answer = await send(version, known.signature.inputs_from(rows))
        except InvalidInputError:
            if (await self.ask(model, version, ask)).version == known.version:
                raise
            return await self._pinned(model, version, rows, send=send, ask=ask)
        if answer.version == known.version:
            return answer
        # Trained anew on the same columns, as versions mostly are.
        now = await self.ask(model, version, ask)
        if now.version == answer.version and now.signature == known.signature:
            return answer
        return await self._pinned(model, version, rows, send=send, ask=ask)

    async def ask(self, model: str, version: str, ask: Ask) -> ModelInfo:
        """Ask the service, and remember what it says."""
        try:
            info = await ask(model, version)
        except NotFoundError:
            self._known.pop((model, version), None)
            raise
        self._known[model, version] = info
        return info

    async def _pinned(
        self, model: str, version: str, rows: Rows, *, send: Callable[[str, Arrays], Awaitable[A]], ask: Ask
    ) -> A:
        """Ask which version answers, and call that one; again if it has been replaced meanwhile."""
        info = await self.ask(model, version, ask)
        try:
            return await send(info.version, info.signature.inputs_from(rows))
        except NotFoundError:
            if info.version == version:
                raise
        info = await self.ask(model, version, ask)
        return await send(info.version, info.signature.inputs_from(rows))
