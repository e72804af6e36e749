"""Paths around paying by the call (payments-402, §1.7 rule 4)."""

from ppq_proxy.dialects import schemas
from ppq_proxy.dialects.openai import envelope
from ppq_proxy.dialects.openapi import JSON, KEY, described
from ppq_proxy.errors import BadRequest, NotFound, Unauthorized
from ppq_proxy.exchange import Exchange
from ppq_proxy.front import Path
from ppq_proxy.money.accounts import Accounts
from ppq_proxy.money.amounts import usd_number
from ppq_proxy.payers import Payers

SMALL_BODY = 16 * 1024


class Payment:
    """Handlers of the payment paths."""

    def __init__(self, accounts: Accounts, payers: Payers) -> None:
        self.accounts, self.payers = accounts, payers

    def paths(self) -> list[Path]:
        """The paths, for the table."""
        return [Path("/v1/payments/claim", {"POST": self.claim}, envelope)]

    @described(
        "Move a payment whose credential was never used to the key's account",
        tag="payments",
        auth=KEY,
        body=schemas.CLAIM_REQUEST,
        ok={JSON: schemas.CLAIMED},
        errors=(400, 401, 402, 404, 409, 413, 503),
    )
    async def claim(self, exchange: Exchange) -> None:
        """POST /v1/payments/claim: move a payment whose credential was never used to the account of the key."""
        payer = await self.payers.payer(exchange)
        if payer is None or payer.guest:
            raise Unauthorized("No API key. Send the key of the account that the payment is to be credited to.")
        body = await exchange.json(SMALL_BODY)
        preimage = body.get("preimage") if isinstance(body, dict) else None
        if not isinstance(preimage, str):
            raise BadRequest("preimage must be a string of 64 hex digits.", param="preimage")
        if self.payers.guests is None:
            raise NotFound("This gateway takes no payments by the call.")
        credited = await self.payers.guests.claim(preimage, payer.account_id)
        account = await self.accounts.account(payer.account_id)
        await exchange.answer_json({"credited_usd": usd_number(credited), "balance_usd": usd_number(account.balance)})
