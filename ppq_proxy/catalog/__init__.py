"""What is sold, under which names, at which prices, and how much of it a request holds."""

from ppq_proxy.catalog.catalog import (
    Catalog,
    CatalogError,
    UnknownModel,
    UnknownType,
    UnpricedModel,
    default_path,
    parse_types,
)
from ppq_proxy.catalog.offerings import Offering, Target
from ppq_proxy.catalog.prices import Line, Prices, UnpricedUnits

__all__ = [
    "Catalog",
    "CatalogError",
    "Line",
    "Offering",
    "Prices",
    "Target",
    "UnknownModel",
    "UnknownType",
    "UnpricedModel",
    "UnpricedUnits",
    "default_path",
    "parse_types",
]
