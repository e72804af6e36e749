"""nginx in two places: as the fixed-answer upstream, and as a proxy in the gateway's place, the limit."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.bench import shapes
from tests.bench.processes import Child

_COMMON = """
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
{user}
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000;
  keepalive_timeout 600s;
  client_body_buffer_size 32k;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
{servers}
}}
"""

# Only what is not a chat call is logged: all requests less the logged ones are the answers, counted at no cost to them.
_UPSTREAM = """
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    default_type application/json;
    location = /v1/chat/completions {{ return 200 '{completion}'; }}
    location = /v1/models {{ access_log {folder}/others.log; return 200 '{models}'; }}
    location = /status {{ access_log {folder}/others.log; stub_status; }}
    location / {{ access_log {folder}/others.log; return 404 '{{}}'; }}
  }}
"""

_PROXY = """
  upstream model {{ server {upstream}; keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://model;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
"""


def missing() -> str | None:
    """Why nginx cannot be used here, or None."""
    binary = _binary()
    if binary is None:
        return "nginx is not installed"
    built = subprocess.run([binary, "-V"], capture_output=True, text=True, check=False).stderr
    return None if "http_stub_status_module" in built else "this nginx has no stub_status"


def start_upstream(port: int, folder: Path, cores: frozenset[int]) -> Child:
    """Answer every POST of a chat with the fixed completion."""
    server = _UPSTREAM.format(
        port=port, folder=folder, completion=shapes.completion().decode(), models=shapes.model_list().decode()
    )
    return _start(server, folder, cores)


def start_proxy(port: int, upstream: str, folder: Path, cores: frozenset[int]) -> Child:
    """Pass everything on to `upstream` (`host:port`), unmetered."""
    return _start(_PROXY.format(port=port, upstream=upstream), folder, cores)


def answers(status_page: str, folder: Path) -> int:
    """Chat calls that were answered, from a page of stub_status: its third line counts requests, this one included."""
    requests = int(status_page.splitlines()[2].split()[2])
    log = folder / "others.log"
    others = log.read_bytes().count(b"\n") if log.exists() else 0
    return requests - 1 - others


def _binary() -> str | None:
    return shutil.which("nginx") or shutil.which("/usr/sbin/nginx")


def _start(servers: str, folder: Path, cores: frozenset[int]) -> Child:
    binary = _binary()
    assert binary is not None
    folder.mkdir(parents=True)
    # Started by root, the worker would become a user that may not enter our folder.
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(_COMMON.format(folder=folder, user=user, servers=servers))
    argv = [binary, "-c", str(config), "-p", str(folder), "-g", "daemon off;"]
    return Child(argv, cores=cores, log=folder / "output.log")
