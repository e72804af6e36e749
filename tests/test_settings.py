"""Settings: where they come from, which goes before which, and what is wrong with a wrong one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ppq_proxy.errors import SettingsError
from ppq_proxy.settings import NAMES, Settings, load


def wrong(match: str, options: dict[str, Any] | None = None, **environ: str) -> None:
    """These settings are refused in words that match."""
    with pytest.raises(SettingsError, match=match):
        load(options, environ)


def test_without_any_setting_it_serves_locally() -> None:
    settings = load({}, {"HOME": "/root", "PATH": "/bin"})
    assert settings == Settings()
    assert (settings.host, settings.port, settings.database) == ("127.0.0.1", 8000, "sqlite:///data/ppq.db")


def test_every_option_has_a_setting_and_every_setting_a_type() -> None:
    assert {field.type for field in dataclasses.fields(Settings)} <= {
        str,
        int,
        float,
        bool,
        "str",
        "int",
        "float",
        "bool",
    }
    assert {"upstream", "upstream_key", "models", "workers", "database", "host", "port"} <= NAMES


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("PPQ_DATABSE", "PPQ_DATABASE"), ("PPQ_UPSTREAM_URL", "PPQ_UPSTREAM"), ("PPQ_PRT", "PPQ_PORT"), ("PPQ_RATELIMIT", "PPQ_RATE_LIMIT"),
        ("PPQ_LND_MACARON", "PPQ_LND_MACAROON"), ("PPQ_MODEL", "PPQ_MODELS"), ("PPQ_UPSTREAMS_KEY", "PPQ_UPSTREAM_KEY"),
    ],
)  # fmt: skip
def test_an_unknown_name_suggests_the_nearest(name: str, near: str) -> None:
    wrong(f"unknown setting {name}; did you mean {near}", options=None, **{name: "x"})


def test_an_unknown_name_in_the_file_suggests_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "ppq.toml"
    file.write_text('datebase = "x"\n')
    wrong("unknown setting datebase; did you mean PPQ_DATABASE", PPQ_SETTINGS=str(file))


def test_option_before_environment_before_file_before_default(tmp_path: Path) -> None:
    file = tmp_path / "ppq.toml"
    file.write_text('port = 1001\nhost = "10.0.0.1"\nworkers = 3\n')
    settings = load(
        {"port": 1003, "models": None}, {"PPQ_SETTINGS": str(file), "PPQ_PORT": "1002", "PPQ_HOST": "10.0.0.2"}
    )
    assert (settings.port, settings.host, settings.workers, settings.models) == (1003, "10.0.0.2", 3, "")


def test_a_file_of_every_type(tmp_path: Path) -> None:
    file = tmp_path / "ppq.toml"
    file.write_text(
        'PORT = 81\ndrain_seconds = 2\nupstream_idle_seconds = 1.5\naccounts_open = false\nmargin = "0.1"\nrate_limit = 60\n'
        '[upstreams.first]\nurl = "http://a.example/v1"\nkey = "k"\nconcurrency = 5\n[upstreams.second]\nurl = "http://b.example/v1"\n'
    )
    settings = load({}, {"PPQ_SETTINGS": str(file)})
    assert (settings.port, settings.drain_seconds, settings.upstream_idle_seconds) == (81, 2.0, 1.5)
    assert settings.accounts_open is False and settings.margin == "0.1" and settings.per_minute("rate_limit") == 60
    assert settings.upstream_table() == {
        "first": {"url": "http://a.example/v1", "key": "k", "concurrency": 5}, "second": {"url": "http://b.example/v1"},
    }  # fmt: skip


@pytest.mark.parametrize("text", ["port = ", "[[[", "port = 1\nport = 2", "\x00"])
def test_a_file_that_is_no_toml(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ppq.toml"
    file.write_text(text)
    wrong(f"PPQ_SETTINGS: cannot read .*{file.name}", PPQ_SETTINGS=str(file))


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    wrong("PPQ_SETTINGS: cannot read", PPQ_SETTINGS=str(tmp_path / "none.toml"))
    binary = tmp_path / "ppq.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    wrong("PPQ_SETTINGS: cannot read", PPQ_SETTINGS=str(binary))


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PPQ_PORT": "eighty"}, "PPQ_PORT must be a whole number, not 'eighty'"),
        ({"PPQ_PORT": "80.5"}, "PPQ_PORT must be a whole number"),
        ({"PPQ_PORT": ""}, "PPQ_PORT must be a whole number"),
        ({"PPQ_PORT": "0"}, "within 1 and 65535"),
        ({"PPQ_PORT": "65536"}, "within 1 and 65535"),
        ({"PPQ_WORKERS": "0"}, "PPQ_WORKERS must be at least 1"),
        ({"PPQ_DRAIN_SECONDS": "soon"}, "PPQ_DRAIN_SECONDS must be a number, not 'soon'"),
        ({"PPQ_DRAIN_SECONDS": "nan"}, "PPQ_DRAIN_SECONDS must be a number of at least 0"),
        ({"PPQ_UPSTREAM_IDLE_SECONDS": "inf"}, "at least 0"),
        ({"PPQ_CLIENT_STALL_SECONDS": "-1"}, "PPQ_CLIENT_STALL_SECONDS must be a number of at least 0"),
        ({"PPQ_MAX_BODY_BYTES": "-5"}, "PPQ_MAX_BODY_BYTES"),
        ({"PPQ_ACCOUNTS_OPEN": "perhaps"}, "PPQ_ACCOUNTS_OPEN must be true or false"),
        ({"PPQ_DATABASE": "postgres://localhost/x"}, "PPQ_DATABASE must be sqlite:///PATH or mongodb://HOST/DB"),
        ({"PPQ_MARGIN": "five percent"}, "must be decimal numbers"),
        ({"PPQ_MARGIN": "-0.1"}, "PPQ_MARGIN must be within 0 and 10"),
        ({"PPQ_MARGIN": "11"}, "PPQ_MARGIN must be within 0 and 10"),
        ({"PPQ_MARGIN": "NaN"}, "PPQ_MARGIN"),
        ({"PPQ_BTC_USD": "0"}, "PPQ_BTC_USD must be a positive decimal"),
        ({"PPQ_BTC_USD": "lots"}, "PPQ_BTC_USD"),
        ({"PPQ_RATE_LIMIT": "fast"}, 'PPQ_RATE_LIMIT must be a number of requests a minute or "off"'),
        ({"PPQ_RATE_LIMIT": "²"}, "PPQ_RATE_LIMIT"),
        ({"PPQ_CHALLENGES_PER_MINUTE": "-1"}, "PPQ_CHALLENGES_PER_MINUTE"),
        ({"PPQ_UPSTREAMS": "{"}, "PPQ_UPSTREAMS is not JSON"),
        ({"PPQ_UPSTREAMS": "[]"}, "PPQ_UPSTREAMS must be an object"),
        ({"PPQ_UPSTREAMS": '{"a": {}}'}, "PPQ_UPSTREAMS must be an object"),
        ({"PPQ_UPSTREAMS": '{"a": "http://x"}'}, "PPQ_UPSTREAMS must be an object"),
    ],
)
def test_a_value_of_a_wrong_type_or_out_of_range(environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({}, environ)
    assert words in str(caught.value)


def test_an_option_of_a_wrong_range_is_found_too() -> None:
    wrong("PPQ_PORT must be within", {"port": 0})


def test_the_password_of_a_database_is_in_no_message() -> None:
    with pytest.raises(SettingsError) as caught:
        load({}, {"PPQ_DATABASE": "mysql://root:hunter2@db/x"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("word", ["1", "true", "TRUE", "yes", "on", " true "])
def test_words_for_true(word: str) -> None:
    assert load({}, {"PPQ_ACCOUNTS_OPEN": word}).accounts_open is True


@pytest.mark.parametrize("word", ["off", "OFF", "", "0"])
def test_words_for_no_limit(word: str) -> None:
    assert load({}, {"PPQ_RATE_LIMIT": word}).per_minute("rate_limit") is None


def test_secrets_are_never_shown() -> None:
    secret = {
        "secret", "upstream_key", "lnd_macaroon", "cln_rune", "phoenixd_password", "lnbits_key", "btcpay_key",
        "btcpay_webhook_secret", "nwc_url", "x402_key",
    }  # fmt: skip
    settings = load({}, {f"PPQ_{name.upper()}": f"hunter2-{name}" for name in secret})
    assert "hunter2" not in repr(settings) and "hunter2" not in str(settings)
    hidden = {field.name for field in dataclasses.fields(Settings) if field.metadata.get("secret")}
    assert secret <= hidden
    suspicious = {
        name for name in NAMES if name.endswith(("_key", "_secret", "_password", "_rune", "_macaroon", "secret"))
    }
    assert suspicious <= hidden, "a setting that sounds like a secret is shown"


def test_nothing_but_ppq_names_is_read() -> None:
    assert load({}, {"PORT": "1", "ppq_port": "2", "XPPQ_PORT": "3", "PPQPORT": "4"}).port == 8000
