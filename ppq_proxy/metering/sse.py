"""A passing event stream (WHATWG HTML, server-sent events): bytes go on untouched, the meter looks at the events that matter.

The fast path is one chunk of whole events with nothing of interest in it: three searches and out. Everything else, such as
an event cut in two, CRLF, one byte at a time, a usage chunk, an error or the end, takes the careful one.
"""

import re
from typing import Any, Protocol

import orjson

from ppq_proxy.errors import UpstreamNonsense

BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")
LINE = re.compile(rb"\r\n|\n|\r")
LARGEST_EVENT = 16 * 1024 * 1024
FOLD_BYTES = 64 * 1024
"""So much of what passed is kept as it is; then it is reduced to its text."""


class Reader(Protocol):
    """What a protocol's events mean. One object for each stream."""

    marks: tuple[bytes, ...]
    """A chunk without any of these holds nothing to look at."""
    done: bool
    finished: bool
    failed: Any

    def event(self, data: bytes, parsed: Any) -> bool:
        """Take an event in: False if the client is not to see it. Sets `done`, `finished`, `failed`."""
        ...

    def content(self, parsed: Any) -> bool:
        """True if the event delivers something to the client."""
        ...

    def interesting(self, chunk: bytes) -> bool:
        """True if a chunk may hold an event that has to be looked at."""
        ...

    def text(self, parsed: Any) -> str:
        """What the event delivers, as text to be counted."""
        ...


def data_of(event: bytes) -> bytes:
    """The data of an event: its data lines joined by newlines, one space after the colon dropped."""
    lines = [line[5:] for line in LINE.split(event) if line.startswith(b"data:")]
    return b"\n".join(line[1:] if line.startswith(b" ") else line for line in lines)


def parse(data: bytes) -> Any:
    """An event's data as JSON; None if it is none (half a UTF-8 character, say): such an event passes and means nothing."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            return orjson.loads(data.decode("utf-8", "replace"))
        except (orjson.JSONDecodeError, UnicodeError):
            return None


class Passage:
    """The bytes of one stream on their way. `feed` says what may go on; the end marker is held back in `end`."""

    __slots__ = ("_kept", "_marks", "_rest", "_searched", "end", "reader", "seen", "started", "texts")

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.started = False
        self.end = b""
        self.seen = 0
        self.texts: list[str] = []
        self._rest = bytearray()
        self._searched = 0
        self._kept = bytearray()
        self._marks = reader.marks

    def feed(self, chunk: bytes) -> bytes:
        """What of everything so far may be sent on now. Raises `UpstreamNonsense` for an event without an end."""
        self.seen += len(chunk)
        if self.started and not self._rest and not self.end and chunk.endswith(b"\n\n"):
            for mark in self._marks:
                if mark in chunk:
                    break
            else:
                self._kept += chunk
                if len(self._kept) > FOLD_BYTES:
                    self.fold()
                return chunk
            if not self.reader.interesting(chunk):
                self._keep(chunk)
                return chunk
        return self._carefully(chunk)

    def _carefully(self, chunk: bytes) -> bytes:
        rest = self._rest
        rest += chunk
        out, at = bytearray(), 0
        start = max(0, self._searched - 3)
        while found := BOUNDARY.search(rest, max(start, at)):
            event = bytes(rest[at : found.end()])
            at = found.end()
            if self._event(event) and not self.reader.done:
                out += event
            elif self.reader.done:
                self.end = self.end or event
        del rest[:at]
        self._searched = len(rest)
        if len(rest) > LARGEST_EVENT:
            raise UpstreamNonsense("The upstream sent an event without an end.")
        return bytes(out)

    def _event(self, event: bytes) -> bool:
        data = data_of(event)
        if not data:
            return not self.reader.done
        if self.started and not self.reader.interesting(event):
            self._keep(event)
            return True
        parsed = None if data == b"[DONE]" else parse(data)
        show = self.reader.event(data, parsed)
        if isinstance(parsed, dict):
            if not self.started and self.reader.content(parsed):
                self.started = True
            if text := self.reader.text(parsed):
                self.texts.append(text)
        return show

    def finish(self) -> bytes:
        """The upstream ended without a blank line: the last event, if it is one. Half of one would only break a client's parser."""
        event = bytes(self._rest)
        self._rest.clear()
        data = data_of(event)
        if not data or (data != b"[DONE]" and parse(data) is None):
            return b""
        return event + b"\n\n" if self._event(event) and not self.reader.done else b""

    def _keep(self, piece: bytes) -> None:
        self._kept += piece
        if len(self._kept) > FOLD_BYTES:
            self.fold()

    def fold(self) -> None:
        """Reduce what was kept to the text it delivered."""
        kept, self._kept = bytes(self._kept), bytearray()
        at = 0
        for found in BOUNDARY.finditer(kept):
            data = data_of(kept[at : found.end()])
            at = found.end()
            if data and isinstance(parsed := parse(data), dict):
                self.reader.event(data, parsed)
                if text := self.reader.text(parsed):
                    self.texts.append(text)

    def delivered(self) -> str:
        """All text that was delivered, in order of arrival but for that of events looked at early."""
        self.fold()
        return "".join(self.texts)
