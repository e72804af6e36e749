"""What a fresh clone and a wheel need: a lock that stands alone, a setup that explains itself, data in the package."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIREMENT = re.compile(r"^([a-z0-9-]+)==\S+(?: ; [^\\]+)? \\$", re.MULTILINE)


def plain(requirement: str) -> str:
    """`x402[evm]>=2` → `x402`."""
    return re.split(r"[\[<>=~! ;]", requirement)[0].lower().replace("_", "-")


def test_every_locked_package_has_one_version_and_hashes() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.lstrip().startswith("#")]
    names = REQUIREMENT.findall(LOCK)
    assert len(names) == len(set(names)) == sum(not line.startswith(" ") for line in lines)
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines if line.startswith(" "))


def test_the_lock_has_all_that_is_declared_and_nothing_that_compiles() -> None:
    project = PYPROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    locked = set(REQUIREMENT.findall(LOCK))
    assert {plain(row) for rows in lists for row in rows} <= locked
    assert not {"llama-cpp-python", "llm"} & locked


def test_the_lock_names_no_host() -> None:
    assert "://" not in LOCK
    assert not re.search(r"^\s*(--(extra-)?index-url|--find-links|-i|-f)\b", LOCK, re.MULTILINE)


def checkout(root: Path) -> Path:
    """As much of one as setup reads."""
    (root / ".ci").mkdir()
    for name in (".ci/setup", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    return root


def setup(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it in an environment of its own."""
    command = ["/bin/sh", str(root / ".ci/setup")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def tools(folder: Path) -> Path:
    """A folder for PATH with what setup calls, and no Python."""
    folder.mkdir()
    for name in ("cat", "cksum", "cut", "dirname", "grep", "head", "sed", "sleep", "tail"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


def shim(path: Path) -> None:
    """What a version manager leaves on the PATH for a version that is not installed."""
    path.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    path.chmod(0o755)


def test_setup_says_in_one_line_that_python_is_missing(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    path = tools(tmp_path / "bin")
    shim(path / "python3.12")
    done = setup(root, PATH=str(path), HOME=str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("setup: Python 3.11 or 3.12 is missing")
    assert done.stderr.count("\n") == 1
    assert not (root / ".venv").exists()


def test_setup_is_quick_when_nothing_changed_and_notices_a_change(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / ".venv/bin").mkdir(parents=True)
    (root / ".venv/bin/python").symlink_to(sys.executable)
    both = (root / "requirements.lock").read_bytes() + (root / "pyproject.toml").read_bytes()
    lock = subprocess.run(["cksum"], input=both, capture_output=True, check=True).stdout.decode()
    (root / ".venv/made-from").write_text(f"{lock}{root.resolve()}\n")
    path = str(tools(tmp_path / "bin"))
    began = time.monotonic()
    done = setup(root, PATH=path)
    assert (done.returncode, done.stdout) == (0, "setup: .venv is up to date\n")
    assert time.monotonic() - began < 2
    (root / ".venv/made-from").write_text(f"{lock}/elsewhere\n")
    assert "is missing" in setup(root, PATH=path).stderr


@pytest.mark.slow
def test_setup_passes_over_a_shim_and_says_in_one_line_what_pip_lacks(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    path = tools(tmp_path / "bin")
    shim(path / "python3.11")
    (path / "python3").symlink_to(Path(sys.executable).resolve())
    done = setup(root, PATH=str(path), HOME=str(tmp_path), PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 1
    assert "setup: making .venv with Python 3.1" in done.stdout
    assert done.stderr.startswith("setup: pip could not install: ERROR: Could not find a version")
    assert done.stderr.count("\n") == 1
    assert not (root / ".venv/made-from").exists()


def test_the_wheel_carries_the_catalogue_and_the_package_data(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("ppq_proxy/models.json") == (ROOT / "models.json").read_bytes()
    assert {"ppq_proxy/__init__.py", "ppq_proxy/local_model.py"} <= names
    data = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ppq_proxy").rglob("*.xz")}
    assert data
    assert data <= names
    assert {name.split("/")[0] for name in names} <= {"ppq_proxy", "private_mode_proxy", wheel_info(wheel)}


def wheel_info(wheel: Path) -> str:
    """The folder of metadata inside a wheel."""
    return "-".join(wheel.name.split("-")[:2]) + ".dist-info"
