"""Settings: `PPQ_…` in the environment, one TOML file (`PPQ_SETTINGS`), and the command line, in rising order of precedence.

The reader is our own: a command has to start within 0.3 s of CPU, and importing a validation framework alone takes longer.
"""

import dataclasses
import difflib
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, get_type_hints

from ppq_proxy.errors import SettingsError

PREFIX = "PPQ_"
NOT_IN_FILE = {"settings"}


def hidden(default: str = "") -> Any:
    """A setting whose value is never shown."""
    return field(default=default, metadata={"secret": True}, repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its default. Times are seconds, sizes bytes, amounts decimal dollars."""

    # serving
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    database: str = "sqlite:///data/ppq.db"
    models: str = ""
    margin: str = "0.055"
    max_body_bytes: int = 32 * 1024 * 1024
    drain_seconds: float = 15.0
    log_file: str = ""
    secret: str = hidden()
    public_url: str = ""
    trusted_proxies: str = "127.0.0.1,::1"

    # upstreams
    upstream: str = ""
    upstream_key: str = hidden()
    upstreams: str = ""
    upstream_connect_seconds: float = 10.0
    upstream_first_byte_seconds: float = 300.0
    upstream_idle_seconds: float = 120.0
    upstream_concurrency: int = 0
    upstream_retries: int = 1
    client_gone_read_on_seconds: float = 30.0
    client_gone_read_on_bytes: int = 8 * 1024 * 1024
    client_stall_seconds: float = 120.0

    # accounts
    allotment_idle_seconds: float = 1.0
    owner_lease_seconds: float = 8.0
    rate_limit: str = "off"
    accounts_open: bool = True

    # payments
    wallet: str = ""
    btc_usd: str = ""
    rate_sources: str = ""
    rate_max_age_seconds: float = 900.0
    challenge_seconds: int = 600
    challenges_per_minute: str = "60"
    network: str = ""
    realm: str = ""
    claims: bool = True
    lnd_url: str = ""
    lnd_macaroon: str = hidden()
    lnd_cert: str = ""
    cln_url: str = ""
    cln_rune: str = hidden()
    cln_cert: str = ""
    phoenixd_url: str = ""
    phoenixd_password: str = hidden()
    lnbits_url: str = ""
    lnbits_key: str = hidden()
    btcpay_url: str = ""
    btcpay_key: str = hidden()
    btcpay_store: str = ""
    btcpay_webhook_secret: str = hidden()
    btcpay_methods: str = "btc"
    nwc_url: str = hidden()
    lightning_address: str = ""
    x402_pay_to: str = ""
    x402_network: str = ""
    x402_facilitator: str = ""
    x402_facilitator_key: str = hidden()
    x402_key: str = hidden()
    x402_rpc_url: str = hidden()
    x402_asset: str = ""
    x402_asset_name: str = ""
    x402_asset_version: str = ""
    x402_settle_seconds: int = 20
    x402_upto: bool = False
    x402_unsigned_transfers: bool = False
    x402_sanctions_oracle: str = ""

    def upstream_table(self) -> dict[str, dict[str, Any]]:
        """The named upstreams beside the default one: TOML tables, or a JSON object in `PPQ_UPSTREAMS`.

        Each is {"url": BASE_URL, "key": …, "concurrency": N, "retries": N, "usage": "always" | "never", "protocols": [ … ]}.
        """
        import orjson

        if not self.upstreams:
            return {}
        try:
            table = orjson.loads(self.upstreams)
        except orjson.JSONDecodeError as problem:
            raise SettingsError(f"{PREFIX}UPSTREAMS is not JSON: {problem}") from None
        if not isinstance(table, dict) or not all(isinstance(row, dict) and row.get("url") for row in table.values()):
            raise SettingsError(
                f'{PREFIX}UPSTREAMS must be an object like {{"name": {{"url": "https://…/v1", "key": "…"}}}}'
            )
        return table

    def per_minute(self, name: str) -> int | None:
        """`rate_limit` or `challenges_per_minute` as a number, or None for "off"."""
        text = str(getattr(self, name)).strip().lower()
        if text in ("off", "", "0"):
            return None
        if not (text.isascii() and text.isdigit()):
            raise SettingsError(f'{PREFIX}{name.upper()} must be a number of requests a minute or "off", not {text!r}')
        return int(text)


NAMES = {f.name for f in dataclasses.fields(Settings)}
KINDS: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def load(options: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from file, environment and options (those that are not None), checked.

    Raises:
        SettingsError: an unknown name (with the nearest known one) or a value of the wrong type.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    if path := environ.get(f"{PREFIX}SETTINGS"):
        values |= _from_file(Path(path))
    for name, text in environ.items():
        if name.startswith(PREFIX) and name != f"{PREFIX}SETTINGS":
            values[_known(name.removeprefix(PREFIX).lower(), name)] = text
    values |= {k: v for k, v in (options or {}).items() if v is not None}
    types = get_type_hints(Settings)
    settings = Settings(**{k: _typed(k, v, types[k]) for k, v in values.items()})
    _check(settings)
    return settings


def _from_file(path: Path) -> dict[str, Any]:
    import orjson

    try:
        table = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SettingsError(f"{PREFIX}SETTINGS: cannot read {path}: {problem}") from None
    values = {_known(name.lower(), name): value for name, value in table.items()}
    if isinstance(values.get("upstreams"), dict):
        values["upstreams"] = orjson.dumps(values["upstreams"]).decode()
    return values


def _known(name: str, shown: str) -> str:
    if name in NAMES:
        return name
    near = difflib.get_close_matches(name, NAMES, 1, 0)
    raise SettingsError(
        f"unknown setting {shown}; did you mean {PREFIX}{near[0].upper()}?" if near else f"unknown setting {shown}"
    )


def _typed(name: str, value: Any, kind: type) -> Any:
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    text = str(value).strip()
    try:
        if kind is bool:
            return {
                "1": True,
                "true": True,
                "yes": True,
                "on": True,
                "0": False,
                "false": False,
                "no": False,
                "off": False,
            }[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise SettingsError(f"{PREFIX}{name.upper()} must be {KINDS[kind]}, not {text[:40]!r}") from None


def _check(settings: Settings) -> None:
    for name in ("rate_limit", "challenges_per_minute"):
        settings.per_minute(name)
    for name in NAMES:
        value = getattr(settings, name)
        if isinstance(value, int | float) and not 0 <= value < math.inf:  # not money: seconds, bytes, counts
            raise SettingsError(f"{PREFIX}{name.upper()} must be a number of at least 0, not {value}")
    if not 1 <= settings.port <= 65535:
        raise SettingsError(f"{PREFIX}PORT must be within 1 and 65535, not {settings.port}")
    if settings.workers < 1:
        raise SettingsError(f"{PREFIX}WORKERS must be at least 1")
    if not settings.database.startswith(("sqlite:///", "mongodb://", "mongodb+srv://")):
        raise SettingsError(
            f"{PREFIX}DATABASE must be sqlite:///PATH or mongodb://HOST/DB, not {settings.database.split('@')[-1]!r}"
        )
    try:
        if not Decimal(settings.margin).is_finite() or not 0 <= Decimal(settings.margin) <= 10:
            raise SettingsError(f"{PREFIX}MARGIN must be within 0 and 10, not {settings.margin}")
        if settings.btc_usd and not Decimal(settings.btc_usd) > 0:
            raise SettingsError(f"{PREFIX}BTC_USD must be a positive decimal, not {settings.btc_usd}")
    except InvalidOperation:
        raise SettingsError(f"{PREFIX}MARGIN and {PREFIX}BTC_USD must be decimal numbers") from None
    settings.upstream_table()
