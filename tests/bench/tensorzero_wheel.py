"""Serve TensorZero's HTTP gateway out of its PyPI wheel: `python tensorzero_wheel.py CONFIG` by a Python that has it.

The wheel's extension module holds the whole gateway and starts it on a port of its own choice, in Rust threads; this
process only waits. Standard library and `tensorzero` alone, since it runs outside of this project's environment.
"""

import signal
import sys

import tensorzero  # type: ignore[import-not-found]

gateway = tensorzero._start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
)
print("ready", gateway.base_url, flush=True)
signal.sigwait({signal.SIGTERM, signal.SIGINT})
gateway.close()
