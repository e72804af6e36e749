"""A TCP connection in the middle that can be cut, and that can swallow an answer after it delivered the question."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Forwarder:
    """Listens on `port` and connects to `target`. `swallow` loses the next answer, once, and cuts the connection."""

    def __init__(self, target: int) -> None:
        self.target, self.port, self.swallow = target, 0, False
        self._open: set[asyncio.StreamWriter] = set()

    def drop(self) -> None:
        """Cut every connection."""
        for writer in self._open:
            writer.close()

    async def close(self) -> None:
        """Cut every connection and wait until they are gone."""
        writers = list(self._open)
        self.drop()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, back = await asyncio.open_connection("127.0.0.1", self.target)
        self._open |= {writer, back}
        try:
            await asyncio.gather(self._copy(reader, back), self._copy(to, writer, answers=True))
        finally:
            writer.close()
            back.close()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if answers and self.swallow:
                    self.swallow = False
                    break
                target.write(data)
                await target.drain()
        target.close()


@contextlib.asynccontextmanager
async def forwarding(target: int) -> AsyncIterator[Forwarder]:
    """A forwarder to a port of 127.0.0.1."""
    middle = Forwarder(target)
    server = await asyncio.start_server(middle.forward, "127.0.0.1", 0)
    middle.port = server.sockets[0].getsockname()[1]
    try:
        yield middle
    finally:
        server.close()
        await middle.close()
