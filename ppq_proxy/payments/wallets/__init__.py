"""The operator's Lightning wallet: `open_wallet` makes the one that the settings name."""

import string
from collections.abc import Callable
from pathlib import Path

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.wallets.base import Wallet
from ppq_proxy.settings import Settings
from ppq_proxy.store.base import Rows

NETWORKS = ("mainnet", "testnet", "signet", "regtest")
_SCHEMES = ("http://", "https://", "nostr+walletconnect://")
_TEST_CHAINS = ("sepolia", "amoy", "fuji", "devnet", "testnet", "84532", "11155111", "80002", "43113", "31337", "1337")


def open_wallet(settings: Settings, rows: Rows) -> Wallet | None:
    """The configured wallet, or None without one. It connects to nothing until it is used.

    Raises:
        SettingsError: an unknown wallet, one that lacks a setting, or the development wallet where real money is.
    """
    if not settings.wallet:
        return None
    if settings.network and settings.network not in NETWORKS:
        raise SettingsError(f"PPQ_NETWORK must be one of {', '.join(NETWORKS)}, not {settings.network[:40]!r}")
    if settings.wallet == "dev":
        return _dev(settings, rows)
    if settings.wallet not in _OPENERS:
        names = ", ".join(("dev", *_OPENERS))
        raise SettingsError(f"PPQ_WALLET must be one of {names}, not {settings.wallet[:40]!r}")
    return _OPENERS[settings.wallet](settings, settings.network or "mainnet")


def _dev(settings: Settings, rows: Rows) -> Wallet:
    from ppq_proxy.payments.wallets.dev import DevWallet

    if settings.network not in ("", "regtest"):
        raise SettingsError(f"PPQ_WALLET=dev is for development: it cannot run with PPQ_NETWORK={settings.network}")
    chain = settings.x402_network
    if chain and not chain.endswith(_TEST_CHAINS):
        raise SettingsError(f"PPQ_WALLET=dev is for development: it cannot run beside PPQ_X402_NETWORK={chain}")
    return DevWallet(rows)


def _lnd(settings: Settings, network: str) -> Wallet:
    from ppq_proxy.payments.wallets.lnd import LndWallet

    _need(settings, "lnd_url", "lnd_macaroon")
    certificate = _file(settings.lnd_cert, "PPQ_LND_CERT")
    return LndWallet(settings.lnd_url, _hex_or_file(settings.lnd_macaroon), certificate, network)


def _cln(settings: Settings, network: str) -> Wallet:
    from ppq_proxy.payments.wallets.cln import ClnWallet

    _need(settings, "cln_url", "cln_rune")
    return ClnWallet(settings.cln_url, settings.cln_rune, _file(settings.cln_cert, "PPQ_CLN_CERT"), network)


def _phoenixd(settings: Settings, network: str) -> Wallet:
    from ppq_proxy.payments.wallets.phoenixd import PhoenixdWallet

    _need(settings, "phoenixd_url", "phoenixd_password")
    return PhoenixdWallet(settings.phoenixd_url, settings.phoenixd_password, network)


def _lnbits(settings: Settings, network: str) -> Wallet:
    from ppq_proxy.payments.wallets.lnbits import LnbitsWallet

    _need(settings, "lnbits_url", "lnbits_key")
    return LnbitsWallet(settings.lnbits_url, settings.lnbits_key, network)


def _btcpay(settings: Settings, network: str) -> Wallet:
    from ppq_proxy.payments.wallets.btcpay import BtcpayWallet

    _need(settings, "btcpay_url", "btcpay_key", "btcpay_store")
    return BtcpayWallet(settings.btcpay_url, settings.btcpay_key, settings.btcpay_store, network)


def _nwc(settings: Settings, network: str) -> Wallet:
    from ppq_proxy.payments.wallets.nwc import NwcWallet

    _need(settings, "nwc_url")
    return NwcWallet(settings.nwc_url, network)


def _lightning_address(settings: Settings, network: str) -> Wallet:
    from ppq_proxy.payments.wallets.lightning_address import LightningAddressWallet

    _need(settings, "lightning_address")
    return LightningAddressWallet(settings.lightning_address, network)


_OPENERS: dict[str, Callable[[Settings, str], Wallet]] = {
    "lnd": _lnd,
    "cln": _cln,
    "phoenixd": _phoenixd,
    "lnbits": _lnbits,
    "btcpay": _btcpay,
    "nwc": _nwc,
    "lightning-address": _lightning_address,
}


def _need(settings: Settings, *names: str) -> None:
    if missing := [f"PPQ_{name.upper()}" for name in names if not getattr(settings, name)]:
        raise SettingsError(f"PPQ_WALLET={settings.wallet} needs {' and '.join(missing)}")
    for name in names:
        if name.endswith("_url") and not getattr(settings, name).startswith(_SCHEMES):
            raise SettingsError(f"PPQ_{name.upper()} must begin with http:// or https://")


def _file(path: str, name: str) -> str:
    if path and not Path(path).is_file():
        raise SettingsError(f"{name}: there is no file {path}")
    return path


def _hex_or_file(macaroon: str) -> str:
    if set(macaroon) <= set(string.hexdigits):
        return macaroon
    try:
        return Path(macaroon).read_bytes().hex()
    except OSError as problem:
        raise SettingsError(
            f"PPQ_LND_MACAROON is neither hex nor a file that can be read: {problem.strerror}"
        ) from None
