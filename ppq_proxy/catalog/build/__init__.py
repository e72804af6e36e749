"""How `models.json` is made: `python -m ppq_proxy.catalog.build`. Nothing here runs in a server."""
