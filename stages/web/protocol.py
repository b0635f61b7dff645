"""uvicorn's HTTP protocol with a deadline for a request's head, against connections that stay silent."""

import asyncio
from asyncio import TimerHandle

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 5.0  # for a request's head to arrive, from the connection's or its first byte on


class ImpatientProtocol(HttpToolsProtocol):
    """Closes a connection whose request's head is not whole in time; uvicorn only bounds the pause between requests."""

    head_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._stop()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._stop()
        self.head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
