"""Payment by a transaction that the client sent itself, shown afterwards: its hash, its sender, and the sender's signature.

The chain has to show a transfer of the asset from that sender to us, of at least the quote, young and deep enough. A
transaction is a row by chain and hash, so it pays once; and since everybody can read the chain, its sender signs the hash
together with the quote and the request.
"""

import time

from ppq_proxy.money.amounts import LARGEST
from ppq_proxy.money.ledger import now_ms
from ppq_proxy.payments.credentials import BadCredential, Problem
from ppq_proxy.payments.x402_chain import Chain, Sent
from ppq_proxy.payments.x402_in_process import in_daemon_thread
from ppq_proxy.payments.x402_payments import CREDIT_MS, KIND, PaymentPending, State
from ppq_proxy.payments.x402_quotes import Quote, Quotes
from ppq_proxy.payments.x402_wire import TIMEOUT_SECONDS, UNIT_NANO, Transfer, transfer_message
from ppq_proxy.store.base import Row, Rows

SMALL_UNITS = 10_000_000
CONFIRMATIONS, CONFIRMATIONS_OF_LARGE = 1, 5


class Transfers:
    """Verifies transactions and keeps each as a settled payment. `unsigned`: the sender's signature may be missing."""

    def __init__(self, rows: Rows, chain: Chain, quotes: Quotes, *, unsigned: bool) -> None:
        self.rows, self.chain, self.quotes, self.unsigned = rows, chain, quotes, unsigned
        self.network, self.pay_to = quotes.network, quotes.pay_to.lower()

    async def settled(self, transfer: Transfer, body: bytes, request: str) -> Row:
        """The row of a transaction that pays for this request, made on its first showing.

        Raises:
            BadCredential: it does not pay, or not for this. PaymentPending: not yet. ChainUnavailable.
        """
        await self._signed(transfer, body)
        key = f"{self.network.caip2}/{transfer.transaction}"
        row = await self.rows.get(KIND, key)
        if row is None:
            doc = await self._verified(transfer, request)
            row = Row(KIND, key, doc, 1, State.SETTLED, now_ms() + CREDIT_MS)
            if not await self.rows.insert(KIND, key, doc, state=row.state, due=row.due):
                row = await self.rows.get(KIND, key) or row
        if row.doc["proof"] != transfer.proof or row.doc["request"] != request:
            raise BadCredential("this transaction has paid for another request")
        return row

    async def _signed(self, transfer: Transfer, body: bytes) -> None:
        if not transfer.signature:
            if self.unsigned:
                return
            raise BadCredential(
                "a transaction is shown with the quoteId of its 402 and its sender's signature (EIP-191) of the lines "
                '"x402 payment by transaction", "network: …", "transaction: …", "quote: …", "body: <sha256 of the body>"',
                Problem.MALFORMED_CREDENTIAL,
            )
        message = transfer_message(self.network, transfer.transaction, transfer.quote_id, body)
        signer = await in_daemon_thread(lambda: _signer_of(message, transfer.signature))
        if signer != transfer.payer:
            raise BadCredential("the signature is not the sender's, or is for another quote or body")

    async def _verified(self, transfer: Transfer, request: str) -> dict[str, object]:
        """The document of a transaction that pays."""
        sent = await self.chain.sent(transfer.transaction, transfer.payer, self.pay_to)
        if sent is None:
            raise BadCredential("no transaction of this hash is known yet; show it again once it is in a block")
        if sent.confirmations == 0:
            raise PaymentPending("The transaction is not in a block yet.")
        _sound(sent)
        quote = await self._quote(transfer, request, sent)
        if sent.amount < quote.terms.amount:
            raise BadCredential(
                f"the transaction brought {sent.amount} of {quote.terms.amount}", Problem.PAYMENT_INSUFFICIENT
            )
        needed = CONFIRMATIONS_OF_LARGE if sent.amount > SMALL_UNITS else CONFIRMATIONS
        if sent.confirmations < needed:
            raise PaymentPending(f"The transaction has {sent.confirmations} of {needed} confirmations.")
        if await self.chain.sanctioned(transfer.payer):
            raise BadCredential("payments of this address are not taken")
        return {
            "proof": transfer.proof, "version": 1, "request": request, "payer": transfer.payer,
            "value": str(sent.amount), "nano": sent.amount * UNIT_NANO, "transaction": transfer.transaction, "at": now_ms(),
        }  # fmt: skip

    async def _quote(self, transfer: Transfer, request: str, sent: Sent) -> Quote:
        named = transfer.quote_id or not self.unsigned
        quote = await (self.quotes.named(transfer.quote_id) if named else self.quotes.made_for(request, sent.amount))
        if quote is None or quote.request != request:
            raise BadCredential(
                "this transaction was not asked for by a quote for this request", Problem.INVALID_CHALLENGE
            )
        if sent.time > quote.expires_at:
            raise BadCredential("the quote had ended when the transaction was made", Problem.PAYMENT_EXPIRED)
        return quote


def _sound(sent: Sent) -> None:
    """Raises `BadCredential` where a transaction counts for nothing, whatever was quoted."""
    if sent.reverted:
        raise BadCredential("the transaction was reverted")
    if sent.indirect:
        raise BadCredential("the transaction is not a transfer that its sender made itself")
    if sent.amount == 0:
        raise BadCredential("the transaction brought nothing of the asset from this sender to this recipient")
    if time.time() > sent.time + TIMEOUT_SECONDS:
        raise BadCredential(f"the transaction is older than {TIMEOUT_SECONDS} s", Problem.PAYMENT_EXPIRED)
    if sent.amount * UNIT_NANO > LARGEST:
        raise BadCredential("the transaction brought more than can be credited")


def _signer_of(message: str, signature: str) -> str:
    """The address that signed a message, "" where the signature is none."""
    from eth_account import Account
    from eth_account.messages import encode_defunct

    try:
        return str(Account.recover_message(encode_defunct(text=message), signature=signature)).lower()
    except Exception:  # border: of the library, which has an error of its own for each way to be wrong
        return ""
