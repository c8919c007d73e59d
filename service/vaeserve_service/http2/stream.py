"""A stream of a connection: a request's data in, an answer's out. Source: RFC 9113, section 5."""

from typing import Protocol

from vaeserve_service.http2.frames import Code, rst_stream, window_update
from vaeserve_service.http2.outflow import Outflow, Outgoing

# Bytes that the other end may send on a stream before they are given back.
WINDOW = 256 * 1024


class Receiver(Protocol):
    """What takes a stream's request."""

    def receive(self, content: bytes, size: int) -> None:
        """Take some data, which counts `size` bytes of the stream's window until they are given back."""
        ...

    def end(self) -> None:
        """Hear that the request is whole."""
        ...

    def close(self) -> None:
        """Hear that the stream has ended, with an answer or because nobody waits for one any more."""
        ...


class Carrier(Protocol):
    """What a stream is carried by."""

    outflow: Outflow

    def write(self, content: bytes) -> None:
        """Send frames."""
        ...

    def write_header(self, stream: int, block: bytes, *, ends: bool = False) -> None:
        """Send a header, which may end its stream."""
        ...

    def forget(self, stream: "Stream") -> None:
        """Count a stream as ended."""
        ...


class Stream(Outgoing):
    """One request and its answer."""

    def __init__(self, number: int, carrier: Carrier, *, window: int) -> None:
        super().__init__(number, window=window)
        self.receiver: Receiver | None = None
        self.is_open = True
        self.is_answered = False
        self._carrier = carrier
        self._request_ended = False
        self._last: bytes | None = None
        self._unreturned = 0
        self._returned = 0

    def start(self, block: bytes) -> None:
        """Send the header of an answer."""
        if self.is_open:
            self._carrier.write_header(self.number, block)

    def send(self, content: bytes) -> None:
        """Send data of an answer."""
        if self.is_open:
            self._carrier.outflow.send(self, content)

    def finish(self, block: bytes) -> None:
        """End an answer with these fields, once its data is sent; that may be all that there is of it."""
        if self.is_open and self._last is None:
            self._last = block
            if not self.waiting:
                self.emptied()

    def reset(self, code: Code) -> None:
        """End the stream without an answer, or with what was sent of it."""
        if self.is_open:
            self._carrier.write(rst_stream(self.number, code))
            self.close()

    def close(self) -> None:
        """End the stream without a word to the other end."""
        if self.is_open:
            self.is_open = False
            self._carrier.outflow.forget(self)
            self._carrier.forget(self)
            receiver, self.receiver = self.receiver, None
            if receiver is not None:
                receiver.close()

    def give_back(self, size: int) -> None:
        """Let the other end send so many bytes more."""
        self._returned += size
        if self._returned >= WINDOW // 2 and self.is_open and not self._request_ended:
            self._carrier.write(window_update(self.number, self._returned))
            self._unreturned -= self._returned
            self._returned = 0

    def receive(self, content: bytes, size: int) -> None:
        """Take a frame of data that counts `size` bytes."""
        self._unreturned += size
        if self._request_ended:
            self.reset(Code.STREAM_CLOSED)
        elif self._unreturned > WINDOW:
            self.reset(Code.FLOW_CONTROL_ERROR)
        elif content and self.receiver is not None:
            self.receiver.receive(content, size)
        else:
            self.give_back(size)

    def end_request(self) -> None:
        """Take the end of a request."""
        if not self._request_ended and self.is_open:
            self._request_ended = True
            if self.receiver is not None:
                self.receiver.end()

    def emptied(self) -> None:
        """Send what ends the answer, if it is all there."""
        if self._last is None or not self.is_open:
            return
        self._carrier.write_header(self.number, self._last, ends=True)
        if not self._request_ended:
            # Whoever still sends may stop. Source: RFC 9113, section 8.1.
            self._carrier.write(rst_stream(self.number, Code.NO_ERROR))
        self.is_answered = True
        self.close()
