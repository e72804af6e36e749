"""Our reader and signer of BOLT 11 against the package `bolt11`, the specification's examples, and liars."""

import hashlib
import secrets

import bolt11
import pytest
from bolt11.models.tags import TagChar, Tags
from hypothesis import given, settings
from hypothesis import strategies as st

from ppq_proxy.payments.invoice import InvalidInvoice, InvoiceMismatch, check, read, sign_regtest

KEY = bytes.fromhex("e126f68f7eafcc8b74f54d269fe206be715000f94dac067d1c04a8ca3b2db734")
HASH = "0001020304050607080900010203040506070809000102030405060708090102"
AT = 1_496_314_658
# Two examples of BOLT 11: 2500 µBTC with an expiry of a minute, and 20 mBTC with a hashed description.
COFFEE = (
    "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypq"
    "dq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh8nhedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09"
    "sam30g4vgpfna3rh"
)
HASHED = (
    "lnbc20m1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqhp58y"
    "jmdan79s6qqdhdzgynm4zwqd5d7xmw5fk98klysy043l2ahrqs9qrsgq7ea976txfraylvgzuxs8kgcw23ezlrszfnh8r6qtfpr6cxga50aj6txm9rxrydzd06dfeawfk"
    "6swupvz4erwnyutnjq7x39ymw6j38gp7ynn44"
)


def of_the_package(currency: str, msat: int | None, tags: dict[TagChar, object], at: int = AT) -> str:
    listed = Tags()
    for char, value in tags.items():
        listed.add(char, value)
    invoice = bolt11.Bolt11(currency, at, listed, None if msat is None else bolt11.MilliSatoshi(msat))
    return bolt11.encode(invoice, KEY.hex())


def usual(**more: object) -> dict[TagChar, object]:
    base: dict[TagChar, object] = {
        TagChar.payment_secret: "11" * 32,
        TagChar.payment_hash: HASH,
        TagChar.description: "a call",
    }
    return base | {TagChar[name]: value for name, value in more.items()}


def test_the_specifications_examples() -> None:
    coffee = read(COFFEE)
    assert coffee.network == "mainnet"
    assert coffee.amount_msat == 250_000_000
    assert coffee.payment_hash == HASH
    assert coffee.description_hash is None
    assert (coffee.created_at, coffee.expires_at) == (AT, AT + 60)
    assert read(COFFEE.upper()) == coffee
    hashed = read(HASHED)
    assert hashed.amount_msat == 2_000_000_000
    assert hashed.expires_at == AT + 3600
    assert hashed.description_hash == "3925b6f67e2c340036ed12093dd44e0368df1b6ea26c53dbe4811f58fd5db8c1"


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["bc", "tb", "tbs", "bcrt"]),
    st.integers(1, 10**14).filter(
        lambda msat: msat % 10**11 != 0
    ),  # of whole bitcoins the package writes the first alone
    st.integers(1, 10**8),
    st.text(max_size=60),
    st.integers(0, 2**34),
)
def test_the_reader_agrees_with_the_package(currency: str, msat: int, expiry: int, memo: str, at: int) -> None:
    invoice = of_the_package(currency, msat, usual(expire_time=expiry, description=memo or "x"), at)
    ours, theirs = read(invoice), bolt11.decode(invoice)
    assert ours.payment_hash == theirs.payment_hash == HASH
    assert ours.amount_msat == theirs.amount_msat == msat
    assert (ours.created_at, ours.expires_at) == (theirs.date, theirs.date + theirs.expiry)
    assert ours.network == {"bc": "mainnet", "tb": "testnet", "tbs": "signet", "bcrt": "regtest"}[theirs.currency]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 10**14),
    st.integers(1, 10**8),
    st.text(max_size=60),
    st.integers(0, 2**34),
    st.binary(min_size=32, max_size=32),
)
def test_the_package_reads_and_verifies_what_we_sign(
    msat: int, expiry: int, memo: str, at: int, preimage: bytes
) -> None:
    payment_hash = hashlib.sha256(preimage).hexdigest()
    invoice = sign_regtest(KEY, payment_hash, msat, memo, at, expiry)
    theirs = bolt11.decode(invoice, ignore_exceptions=True)
    assert theirs.payment_hash == payment_hash
    assert theirs.amount_msat == msat
    assert (theirs.date, theirs.expiry, theirs.currency) == (at, expiry, "bcrt")
    assert (theirs.description or "") == memo
    assert theirs.payee == "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad"
    assert theirs.features
    assert read(invoice).payment_hash == payment_hash
    assert read(invoice).amount_msat == msat


@pytest.mark.parametrize(
    ("msat", "human"),
    [(590_000, "5900n"), (1_000_000, "10u"), (1000, "10n"), (1001, "10010p"), (10**8, "1m"), (10**11, "1"), (1, "10p")],
)
def test_an_amount_is_written_in_the_largest_unit_that_is_exact(msat: int, human: str) -> None:
    invoice = sign_regtest(KEY, HASH, msat, "", AT, 600)
    assert invoice.startswith(f"lnbcrt{human}1")
    assert read(invoice).amount_msat == bolt11.decode(invoice, ignore_exceptions=True).amount_msat == msat


def test_a_long_memo_is_cut() -> None:
    assert len(bolt11.decode(sign_regtest(KEY, HASH, 1000, "x" * 2000, AT, 60)).description or "") == 639


def test_every_single_wrong_letter_is_noticed() -> None:
    for at in range(len("lnbc"), len(COFFEE)):
        wrong = COFFEE[:at] + ("q" if COFFEE[at] != "q" else "p") + COFFEE[at + 1 :]
        with pytest.raises(InvalidInvoice):
            read(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "ln",
        "lnbc1",
        "lnxx1" + COFFEE[9:],
        COFFEE[:-1],
        COFFEE[:60],
        "LNbc" + COFFEE[4:],
        "ö" + COFFEE,
        "lnbc1" + "q" * 9000,
    ],
)
def test_what_is_no_invoice_is_refused(text: str) -> None:
    with pytest.raises(InvalidInvoice):
        read(text)


def test_an_invoice_without_a_payment_hash_is_refused() -> None:
    listed = Tags()
    listed.add(TagChar.description, "no hash")
    text = bolt11.encode(
        bolt11.Bolt11("bcrt", AT, listed, bolt11.MilliSatoshi(1000)), KEY.hex(), ignore_exceptions=True
    )
    with pytest.raises(InvalidInvoice, match="payment hash"):
        read(text)


@given(st.text(max_size=120))
def test_read_raises_nothing_but_InvalidInvoice(text: str) -> None:
    for prefix in ("", "lnbc1", "lnbcrt10u1"):
        with pytest.raises(InvalidInvoice):
            read(prefix + text)


def test_what_was_asked_for_passes_the_check() -> None:
    invoice = sign_regtest(KEY, HASH, 21_000, "", AT, 600)
    found = check(invoice, payment_hash=HASH.upper(), amount_msat=21_000, network="regtest", lives_until=AT + 600)
    assert found.expires_at == AT + 600


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"payment_hash": secrets.token_hex(32)}, "payment hash"),
        ({"amount_msat": 20_000}, "amount in msat"),
        ({"network": "mainnet"}, "network"),
        ({"lives_until": AT + 601}, "expiry"),
        ({"description_hash": "00" * 32}, "description hash"),
    ],
)
def test_another_invoice_than_asked_for_is_refused(asked: dict[str, object], field: str) -> None:
    invoice = sign_regtest(KEY, HASH, 21_000, "", AT, 600)
    good: dict[str, object] = {
        "payment_hash": HASH,
        "amount_msat": 21_000,
        "network": "regtest",
        "lives_until": AT + 600,
    }
    with pytest.raises(InvoiceMismatch, match=field) as refusal:
        check(invoice, **(good | asked))  # type: ignore[arg-type]  # the cases vary in type
    assert refusal.value.field == field


def test_an_invoice_of_any_amount_is_refused() -> None:
    with pytest.raises(InvoiceMismatch, match="amount"):
        check(
            of_the_package("bcrt", None, usual()),
            payment_hash=HASH,
            amount_msat=1000,
            network="regtest",
            lives_until=AT,
        )


def test_rubbish_in_the_place_of_an_invoice_is_refused() -> None:
    with pytest.raises(InvoiceMismatch, match="form"):
        check("rubbish", payment_hash=None, amount_msat=1, network="regtest", lives_until=0)
