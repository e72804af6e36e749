"""Which upstream a call goes to: the offering's order of preference, retries, fallback, and breakers that never eject the last one."""

import asyncio
import random

from ppq_proxy.catalog.offerings import Offering
from ppq_proxy.errors import UpstreamUnavailable
from ppq_proxy.providers.http import Failed, Upstream


class Attempts:
    """The attempts at one call: `current` is the target to try; report how it went with `failed` or `delivered`."""

    __slots__ = ("_at", "_targets", "_turn", "made")

    def __init__(self, targets: list[tuple[Upstream, str]]) -> None:
        self._targets = targets
        self._at = self._turn = 0
        self.made: list[dict[str, str]] = []

    @property
    def current(self) -> tuple[Upstream, str]:
        """The upstream to try, and the model's name there."""
        return self._targets[self._at]

    def failed(self, problem: Failed) -> bool:
        """The current attempt delivered nothing: go on to the next one; False if there is none."""
        upstream, _ = self._targets[self._at]
        self.made.append({"upstream": upstream.name, "error": problem.error.code})
        upstream.note(problem)
        if problem.again and self._turn < upstream.retries:
            self._turn += 1
            return True
        self._at, self._turn = self._at + 1, 0
        return problem.elsewhere and self._at < len(self._targets)

    async def pause(self) -> None:
        """Before the same upstream is tried again: it failed a moment ago."""
        if self._turn:
            await asyncio.sleep(0.05 * 2**self._turn * random.uniform(0.5, 1))

    def delivered(self) -> None:
        """The current attempt delivered."""
        upstream, _ = self._targets[self._at]
        self.made.append({"upstream": upstream.name})
        upstream.note(None)


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
