"""Who pays for a request: its credentials, in their order of precedence, as a payer."""

from ppq_proxy.errors import Unauthorized
from ppq_proxy.exchange import Exchange
from ppq_proxy.money.accounts import Accounts, Payer
from ppq_proxy.payments.guests import Guests


class Payers:
    """Looks up credentials. Without `guests`, only accounts pay."""

    def __init__(self, accounts: Accounts, guests: Guests | None = None) -> None:
        self.accounts, self.guests = accounts, guests

    async def payer(self, exchange: Exchange) -> Payer | None:
        """The payer of a request; None if it shows no credential at all.

        Raises:
            Unauthorized: a key that is not good. guests.Refused: a payment that is not.
        """
        headers = exchange.headers
        authorization = headers.get(b"authorization", b"")
        if (
            authorization[:7].lower() == b"bearer "
            and b"payment-signature" not in headers
            and b"x-payment" not in headers
        ):
            secret = authorization[7:].decode("latin-1").strip()
            if b"payment-authorization" not in headers or self.guests is None:
                return self.accounts.known(secret) or await self._bearer(secret)
        if self.guests is not None and (payer := await self.guests.payer(exchange)):
            return payer
        return await self._other(exchange, authorization)

    async def _bearer(self, secret: str) -> Payer | None:
        return await self.accounts.authenticate(secret) if secret else None

    async def _other(self, exchange: Exchange, authorization: bytes) -> Payer | None:
        if authorization[:7].lower() == b"bearer ":
            return await self._bearer(authorization[7:].decode("latin-1").strip())
        if credit_id := exchange.header(b"x-credit-id"):
            return await self.accounts.payer_of_account(credit_id)
        if secret := exchange.header(b"x-api-key") or exchange.header(b"api-key"):
            return await self.accounts.authenticate(secret)
        if authorization.strip() and authorization.strip().lower() != b"bearer":
            raise Unauthorized("The Authorization header is not understood; send Authorization: Bearer <api key>.")
        return None
