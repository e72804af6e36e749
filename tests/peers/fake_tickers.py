"""Stands in for the public BTC/USD tickers, in their own shapes, as they answered in 2026.

State, by name of the ticker: a price as a decimal string, or an int, with which it answers as HTTP status.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.peers.fake_server import application, serve

SHAPES = {
    "coinbase": '{"data":{"amount":"%s","base":"BTC","currency":"USD"}}',
    "kraken": '{"error":[],"result":{"XXBTZUSD":{"a":["1","1","1"],"b":["1","1","1"],"c":["%s","0.0002"]}}}',
    "bitstamp": '{"timestamp":"1795228408","open":"1","high":"2","low":"1","last":"%s","volume":"900.1","bid":"1"}',
    "bitfinex": "[1,2.5,3,4,-5,-0.01,%s,500.5,9,8]",
    "raw": "%s",
}

state: dict[str, Any] = dict.fromkeys(SHAPES, "100000")


async def ticker(request: Request) -> Response:
    name = request.path_params["name"]
    said = state[name]
    if isinstance(said, int):
        return Response("busy", status_code=said)
    return Response(SHAPES[state.get(f"{name}_shape", name)] % said, media_type="application/json")


if __name__ == "__main__":
    serve(application([Route("/{name}", ticker)], state))
