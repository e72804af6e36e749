"""The HTTP API as its users see it: every path, every error, the stock clients."""
