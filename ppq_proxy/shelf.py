"""What is for sale at the moment: the catalogue that the settings and the upstreams' own lists make."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ppq_proxy.catalog.catalog import Catalog, default_path
from ppq_proxy.catalog.offerings import DEFAULT_UPSTREAM, Offering, Target
from ppq_proxy.providers.http import Failed, Upstream
from ppq_proxy.settings import Settings

log = logging.getLogger("ppq.shelf")

REFRESH_SECONDS = 600.0
IMPATIENT_SECONDS = 3.0


class Shelf:
    """Holds the catalogue. `listens`: it follows what the default upstream lists, as no models file was given."""

    def __init__(self, settings: Settings, upstreams: Mapping[str, Upstream]) -> None:
        self.settings, self.upstreams = settings, upstreams
        self.listens = bool(settings.upstream) and not settings.models
        known = Catalog.load(settings.models or default_path(), settings.margin)
        self._known = known
        self.catalog = known.restrict([name for name in upstreams if name != DEFAULT_UPSTREAM or not self.listens])
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self.listens:
            await self.refresh()
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS if self.catalog.offerings else IMPATIENT_SECONDS)
            try:
                await self.refresh()
            except Exception:  # border: of one look at the upstream; what was known stays for sale
                log.exception("the catalogue could not be refreshed")

    async def refresh(self) -> None:
        """Ask the default upstream what it has; keep what was known where it does not answer."""
        upstream = self.upstreams[DEFAULT_UPSTREAM]
        try:
            listed = await upstream.get("/models")
        except Failed as problem:
            log.warning("the upstream's list of models cannot be read: %s", problem.error.message)
            return
        rows = listed.get("data") if isinstance(listed, dict) else None
        own = Catalog.from_upstream(rows, self.settings.margin)
        others = self._known.restrict([name for name in self.upstreams if name != DEFAULT_UPSTREAM])
        self.catalog = own.joined(self._priced(rows)).joined(others)
        if not self.catalog.offerings:
            log.warning(
                "the upstream lists %d models, none of them with a price: give prices with --models FILE", own.left_out
            )

    def _priced(self, rows: Any) -> Catalog:
        """Models that the upstream lists without a price, and whose price our own file knows."""
        found: dict[str, Offering] = {}
        for row in rows if isinstance(rows, list) else ():
            name = row.get("id") if isinstance(row, dict) else None
            if isinstance(name, str) and not row.get("pricing"):
                try:
                    offering = self._known.resolve(name)
                except LookupError:
                    continue
                found.setdefault(offering.id, replace(offering, upstreams=(Target(DEFAULT_UPSTREAM, name),)))
        return Catalog(list(found.values()), self._known.version)
