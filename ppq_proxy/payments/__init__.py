"""Money from outside: paying by the call (L402, MPP, x402), top-ups, exchange rates and the operator's wallet."""
