"""How often one peer may ask for challenges, and be refused: minting is paid by the operator, a paying loop by the client.

Counted in each process: the numbers protect a wallet and a careless client, they are no account.
"""

import ipaddress
import time
from collections import deque
from collections.abc import Callable

MINUTE = 60.0  # not money: seconds
REFUSALS = 3
MOST_PEERS = 50_000


def network_of(address: str) -> str:
    """A peer's name: an IPv4 address, or the /64 of an IPv6 one, since a home has a whole /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


class Minutes:
    """Events of the last minute by peer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:  # not money: seconds
        self._clock = clock
        self._seen: dict[str, deque[float]] = {}  # not money: seconds

    def count(self, peer: str) -> int:
        """How many there were within the last minute."""
        seen = self._seen.get(peer)
        if seen is None:
            return 0
        before = self._clock() - MINUTE
        while seen and seen[0] <= before:
            seen.popleft()
        if not seen:
            del self._seen[peer]
        return len(seen)

    def add(self, peer: str) -> None:
        if peer not in self._seen and len(self._seen) >= MOST_PEERS:
            for other in list(self._seen):
                self.count(other)
            if len(self._seen) >= MOST_PEERS:  # all within this minute: the oldest peer is let off
                del self._seen[next(iter(self._seen))]
        self._seen.setdefault(peer, deque()).append(self._clock())

    def clear(self, peer: str) -> None:
        self._seen.pop(peer, None)

    def wait(self, peer: str) -> int:
        """Whole seconds until the oldest event of the last minute is over, at least 1."""
        seen = self._seen.get(peer)
        return max(1, int(seen[0] + MINUTE - self._clock()) + 1) if seen else 1
