"""Header fields as bytes: HPACK, decoded by the library of that name. Source: RFC 7541."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from hpack import Decoder, HPACKError

from vaeserve_service.http2.frames import Code, Http2Error

T = TypeVar("T")
Fields = Sequence[tuple[bytes, bytes]]

# Of a table, what is another thing once the table is: its size, how many entries it has, and the newest of them.
_Table = tuple[int, int, tuple[bytes, bytes] | None]

# Header blocks of which it is known what they say, and the most that one says: a caller of one RPC has one of them.
_KNOWN, _KNOWN_BYTES = 16, 1024
# How much larger fields may be than the limit, and still be decoded so as to say that they are too large.
_MARGIN = 4


class FieldDecoder(Generic[T]):
    """Decodes header blocks, in their order, and makes of each what `read` does.

    Callers send the same fields again and again, as bytes that name entries of the table that both ends keep: as long
    as none is added, the same bytes say the same.
    """

    def __init__(self, read: Callable[[Fields], T], *, most_bytes: int) -> None:
        self._read = read
        self._decoder = Decoder(max_header_list_size=_MARGIN * most_bytes)
        self._known: dict[bytes, T] = {}

    def decode(self, block: bytes) -> T:
        """Return what a block says; raises Http2Error for one that can't be decoded, for the tables then differ."""
        if block in self._known:
            return self._known[block]
        before = self._table()
        try:
            fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except HPACKError:
            raise Http2Error(Code.COMPRESSION_ERROR, "hpack: a header that can't be decoded") from None
        made = self._read(fields)
        if not _same(before, self._table()) or len(self._known) >= _KNOWN:
            self._known.clear()
        elif sum(len(name) + len(value) for name, value in fields) <= _KNOWN_BYTES:
            self._known[block] = made
        return made

    def _table(self) -> _Table:
        table = self._decoder.header_table
        return table.maxsize, len(table.dynamic_entries), table.dynamic_entries[0] if table.dynamic_entries else None


def _same(before: _Table, after: _Table) -> bool:
    """Return whether a table is as it was. What is added to it is another entry, if with the same content."""
    return before[:2] == after[:2] and before[2] is after[2]


def block(fields: Fields) -> bytes:
    """Return fields as they are sent: neither compressed nor remembered, so that there is no table to keep (6.2.2)."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def _string(text: bytes) -> bytes:
    """Return a string after its length, whose first byte has seven bits for it (5.1, 5.2)."""
    size = len(text)
    if size < 0x7F:
        return bytes((size,)) + text
    encoded, size = bytearray((0x7F,)), size - 0x7F
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded) + text
