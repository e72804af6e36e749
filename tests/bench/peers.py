"""Peers, where they are installed: TensorZero, Portkey, LiteLLM. README.md says how to install them.

Each is looked for in an environment variable, then on the PATH, then under `$XDG_CACHE_HOME/ppq-proxy-bench`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path

from tests.bench.processes import Cores, free_port
from tests.bench.target import Place, Running, Target, Unusable, wait_until

_WHEEL_SCRIPT = Path(__file__).with_name("tensorzero_wheel.py")

_TENSORZERO = """
[gateway]
bind_address = "127.0.0.1:{port}"
observability.enabled = false

[models.bench]
routing = ["upstream"]

[models.bench.providers.upstream]
type = "openai"
model_name = "bench"
api_base = "{upstream}/"
api_key_location = "env::BENCH_UPSTREAM_KEY"
"""


def cache_folder() -> Path:
    """Where README.md installs peers."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ppq-proxy-bench"


def _find(variable: str, on_path: str | None, in_cache: str) -> Path | None:
    named = os.environ.get(variable)
    if named:
        return Path(named)
    found = shutil.which(on_path) if on_path else None
    if found:
        return Path(found)
    cached = cache_folder() / in_cache
    return cached if cached.exists() else None


class TensorZero(Target):
    """The gateway binary, or the same gateway out of the PyPI wheel, which serves it from a Python process."""

    name = "tensorzero"
    about = "TensorZero (Rust), observability off, unmetered"
    path = "/openai/v1/chat/completions"

    def missing(self, cores: Cores) -> str | None:
        return None if self._binary() or self._python() else "no TensorZero gateway found"

    def start(self, place: Place) -> Running:
        port = free_port()
        config = place.folder / "tensorzero.toml"
        config.write_text(_TENSORZERO.format(port=port, upstream=place.upstream))
        env = {"BENCH_UPSTREAM_KEY": "sk-x", "RUST_LOG": "warn"}
        binary, python = self._binary(), self._python()
        if binary:
            running = self._spawn([str(binary), "--config-file", str(config)], place, port, env)
        elif python:
            running = self._spawn([str(python), str(_WHEEL_SCRIPT), str(config)], place, port, env)
            running.url = self._address(running, place.folder / "output.log")
        else:
            raise Unusable("no TensorZero gateway found")
        running.model = "tensorzero::model_name::bench"
        return self._first_answer(running)

    def _address(self, running: Running, log: Path) -> str:
        """The gateway of the wheel takes a port of its own choice and the script prints it."""
        assert running.child is not None
        wait_until(running.child, lambda: "ready http" in log.read_text(), self.name)
        base = log.read_text().split("ready ")[1].split()[0]
        return f"{base.rstrip('/')}/chat/completions"

    def _binary(self) -> Path | None:
        return _find("TENSORZERO_GATEWAY", "tensorzero", "tensorzero/gateway")

    def _python(self) -> Path | None:
        return _find("TENSORZERO_PYTHON", None, "tensorzero/bin/python")


class Portkey(Target):
    """The open-source gateway on Node."""

    name = "portkey"
    about = "Portkey (Node), unmetered"

    def missing(self, cores: Cores) -> str | None:
        if shutil.which("node") is None:
            return "node is not installed"
        return None if self._script() else "no Portkey gateway found"

    def start(self, place: Place) -> Running:
        port = free_port()
        script = self._script()
        node = shutil.which("node")
        if script is None or node is None:
            raise Unusable("no Portkey gateway found")
        env = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
        running = self._spawn([node, str(script), f"--port={port}", "--headless"], place, port, env)
        running.headers |= {"x-portkey-provider": "openai", "x-portkey-custom-host": place.upstream}
        return self._first_answer(running)

    def _script(self) -> Path | None:
        found = _find("PORTKEY", None, "portkey/node_modules/@portkey-ai/gateway")
        return found / "build" / "start-server.js" if found and found.is_dir() else found


class LiteLLM(Target):
    """The proxy without a database, so it meters nothing."""

    name = "litellm"
    about = "LiteLLM proxy (Python), no database, unmetered"
    most_streams = 50

    def missing(self, cores: Cores) -> str | None:
        return None if self._binary() else "no litellm found"

    def start(self, place: Place) -> Running:
        port = free_port()
        binary = self._binary()
        if binary is None:
            raise Unusable("no litellm found")
        parameters = {"model": "openai/bench", "api_base": place.upstream, "api_key": "sk-x"}
        master_key = f"sk-{secrets.token_hex(32)}"  # it refuses to start without one, and one that looks weak
        config = place.folder / "litellm.yaml"  # JSON is YAML
        models = [{"model_name": "bench", "litellm_params": parameters}]
        document = {"model_list": models, "litellm_settings": {"telemetry": False}}
        config.write_text(json.dumps(document | {"general_settings": {"master_key": master_key}}))
        argv = [str(binary), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
        running = self._spawn(argv, place, port, env)
        running.headers = {"authorization": f"Bearer {master_key}"}
        return self._first_answer(running, patience=180.0)

    def _binary(self) -> Path | None:
        return _find("LITELLM", "litellm", "litellm/bin/litellm")
