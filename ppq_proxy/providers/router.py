"""Which upstream a call goes to: the offering's order of preference, retries, fallback, and breakers that never eject the last one."""

import asyncio
import random
from collections.abc import AsyncIterator

from ppq_proxy.catalog.offerings import Offering
from ppq_proxy.errors import UpstreamUnavailable
from ppq_proxy.providers.http import Failed, Upstream


class Attempts:
    """The attempts at one call, in order. `async for` yields (upstream, model); report each with `failed` or `delivered`."""

    __slots__ = ("_targets", "current", "last", "made")

    def __init__(self, targets: list[tuple[Upstream, str]]) -> None:
        self._targets = targets
        self.made: list[dict[str, str]] = []
        self.last: Failed | None = None
        self.current: Upstream | None = None

    async def __aiter__(self) -> AsyncIterator[tuple[Upstream, str]]:
        for upstream, model in self._targets:
            for turn in range(1 + upstream.retries):
                if turn:
                    await asyncio.sleep(0.05 * 2**turn * random.uniform(0.5, 1))
                self.current = upstream
                yield upstream, model
                if self.last is None or not self.last.again:
                    break
            if self.last is None or not self.last.elsewhere:
                return

    def failed(self, problem: Failed) -> None:
        """The current attempt delivered nothing."""
        assert self.current is not None
        self.last = problem
        self.made.append({"upstream": self.current.name, "error": problem.error.code})
        self.current.note(problem)

    def delivered(self) -> None:
        """The current attempt delivered."""
        assert self.current is not None
        self.last = None
        self.made.append({"upstream": self.current.name})
        self.current.note(None)


class Router:
    """The upstreams by name."""

    def __init__(self, upstreams: dict[str, Upstream]) -> None:
        self.upstreams = upstreams

    def attempts(self, offering: Offering) -> Attempts:
        """The targets of an offering, those whose breaker is open last."""
        targets = [(self.upstreams[t.upstream], t.model) for t in offering.upstreams if t.upstream in self.upstreams]
        if len(targets) > 1:
            targets.sort(key=lambda target: target[0].breaker.open)
        if not targets:
            raise UpstreamUnavailable("No upstream that serves this model is set up.")
        return Attempts(targets)

    @property
    def usable(self) -> bool:
        """True if at least one upstream is not known to fail."""
        return any(not upstream.breaker.open for upstream in self.upstreams.values())

    async def close(self) -> None:
        for upstream in self.upstreams.values():
            await upstream.close()
