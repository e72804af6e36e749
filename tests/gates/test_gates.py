"""The gates catch what they are there for, and leave alone what is allowed."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.gates import layers, money

ROOT = Path(__file__).resolve().parents[2]
SKELETON = {
    f"ppq_proxy/{name}": ""
    for name in (
        *("__init__.py", "cli.py", "app.py", "sale.py", "errors.py", "settings.py"),
        *("dialects/__init__.py", "dialects/openai.py", "money/__init__.py", "money/amounts.py", "money/ledger.py"),
        *("catalog/__init__.py", "catalog/prices.py", "payments/__init__.py", "payments/l402.py"),
        *("store/__init__.py", "store/sqlite.py", "work/__init__.py"),
    )
} | {"private_mode_proxy/__init__.py": "", "private_mode_proxy/app.py": ""}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """A checkout in which nothing is wrong but what `files` say."""
    for name, text in (SKELETON | dict(files)).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_skeleton_of_the_house_is_in_order(tmp_path: Path) -> None:
    assert layers.check(tree(tmp_path, {})) == []
    assert money.check(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("dialects/openai.py", "from ppq_proxy.sale import sell\nfrom ppq_proxy.store.sqlite import Store\n"),
        ("sale.py", "import ppq_proxy.money.ledger\nfrom ppq_proxy import errors, settings\n"),
        ("payments/l402.py", "from ..money import ledger\nfrom ..catalog.prices import Prices\nfrom . import mpp\n"),
        ("store/sqlite.py", "from ppq_proxy.money.amounts import ceil\nfrom ..errors import GatewayError\n"),
        ("money/ledger.py", "from ppq_proxy.money.amounts import ceil\nfrom .amounts import floor\n"),
        ("cli.py", "def serve():\n    from ppq_proxy.app import build\n"),
        ("cli.py", "import importlib\nimportlib.import_module('ppq_proxy.app')\n"),
    ],
)
def test_imports_downwards_are_allowed(tmp_path: Path, file: str, text: str) -> None:
    assert layers.check(tree(tmp_path, {f"ppq_proxy/{file}": text})) == []


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("sale.py", "from ppq_proxy.dialects import openai\n", 1),
        ("sale.py", "from ppq_proxy import dialects\n", 1),
        ("sale.py", "import os\nimport ppq_proxy.dialects.openai as x\n", 2),
        ("dialects/openai.py", "from ppq_proxy import app\n", 1),
        ("money/ledger.py", "def f():\n    from ppq_proxy.sale import sell\n", 2),
        ("money/ledger.py", "from ..sale import sell\n", 1),
        ("money/ledger.py", "from .. import sale\n", 1),
        ("money/__init__.py", "from ..sale import sell\n", 1),
        ("catalog/__init__.py", "from .. import dialects\n", 1),
        ("store/sqlite.py", "from ppq_proxy.money.ledger import Ledger\n", 1),
        ("store/sqlite.py", "from ppq_proxy.money import ledger\n", 1),
        (
            "store/sqlite.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..payments import l402\n",
            3,
        ),
        ("errors.py", "from ppq_proxy.store import sqlite\n", 1),
        ("money/amounts.py", "from ppq_proxy.money import ledger\n", 1),
        ("money/ledger.py", "from importlib import import_module\nimport_module('ppq_proxy.sale')\n", 2),
        ("money/ledger.py", "__import__('ppq_proxy.sale')\n", 1),
    ],
)
def test_imports_upwards_are_caught(tmp_path: Path, file: str, text: str, line: int) -> None:
    found = layers.check(tree(tmp_path, {f"ppq_proxy/{file}": text}))
    assert len(found) == 1
    assert found[0].startswith(f"ppq_proxy/{file}:{line}: ")
    assert "which is above it" in found[0]


def test_the_two_packages_stand_apart(tmp_path: Path) -> None:
    files = {
        "private_mode_proxy/app.py": "from ppq_proxy.errors import GatewayError\n",
        "ppq_proxy/cli.py": "import private_mode_proxy.app\n",
    }
    found = layers.check(tree(tmp_path, files))
    assert [line.split(":")[0] for line in found] == ["ppq_proxy/cli.py", "private_mode_proxy/app.py"]
    assert all("stand apart" in line for line in found)


def test_the_product_does_not_import_its_tests(tmp_path: Path) -> None:
    found = layers.check(tree(tmp_path, {"ppq_proxy/app.py": "from tests.peers import mongod\n"}))
    assert len(found) == 1
    assert "does not know its tests" in found[0]


def test_a_circle_of_rooms_side_by_side_is_caught(tmp_path: Path) -> None:
    files = {
        "ppq_proxy/payments/l402.py": "from ppq_proxy.money import ledger\n",
        "ppq_proxy/money/ledger.py": "from ppq_proxy.catalog import prices\n",
    }
    assert layers.check(tree(tmp_path, files)) == []
    files["ppq_proxy/catalog/prices.py"] = "from ppq_proxy.payments import l402\n"
    found = layers.check(tree(tmp_path, files))
    assert len(found) == 3
    assert all("which leads back to" in line for line in found)


def test_a_module_without_a_layer_is_caught(tmp_path: Path) -> None:
    found = layers.check(tree(tmp_path, {"ppq_proxy/misc.py": ""}))
    assert found == ["ppq_proxy/misc.py:1: no layer, give it one in tests/gates/layers.py"]


def test_long_modules_and_functions_are_caught_unless_excused(tmp_path: Path) -> None:
    body = "    x = 1\n" * layers.FUNCTION_LINES
    files = {
        "ppq_proxy/app.py": "x = 1\n" * (layers.MODULE_LINES + 1),
        "ppq_proxy/sale.py": f"class Sale:\n    pass\nasync def sell():\n{body}",
        "ppq_proxy/cli.py": f"def fits():\n{body[: -len('    x = 1') - 1]}" + "x = 1\n" * 300,
    }
    found = layers.check(tree(tmp_path, files))
    assert found == [
        "ppq_proxy/app.py:1: ppq_proxy/app.py has 451 lines, 450 are allowed",
        "ppq_proxy/sale.py:3: ppq_proxy/sale.py::sell has 61 lines, 60 are allowed",
    ]
    assert layers.check(tmp_path, {"ppq_proxy/app.py": "a table", "ppq_proxy/sale.py::sell": "one match"}) == []


def test_an_excuse_that_is_not_needed_is_caught(tmp_path: Path) -> None:
    found = layers.check(tree(tmp_path, {}), {"ppq_proxy/sale.py::sell": "it was long once"})
    assert found == ["ppq_proxy/sale.py::sell: excused as long, but no longer is"]


@pytest.mark.parametrize(
    "handler",
    ["except:", "except Exception:", "except BaseException as error:", "except (ValueError, Exception):"],
)
def test_a_handler_of_everything_has_to_name_its_border(tmp_path: Path, handler: str) -> None:
    text = "try:\n    pass\n{}\n    raise\n"
    found = layers.check(tree(tmp_path, {"ppq_proxy/app.py": text.format(handler)}))
    assert found == ["ppq_proxy/app.py:3: everything is caught without `# border: why`"]
    assert layers.check(tree(tmp_path, {"ppq_proxy/app.py": text.format(f"{handler}  # border:")})) == found
    assert layers.check(tree(tmp_path, {"ppq_proxy/app.py": text.format(f"{handler}  # border: a task's end")})) == []


def test_suppressing_everything_is_catching_everything(tmp_path: Path) -> None:
    text = "import contextlib\nwith contextlib.suppress(OSError, Exception):\n    pass\n"
    found = layers.check(tree(tmp_path, {"ppq_proxy/app.py": text}))
    assert found == ["ppq_proxy/app.py:2: everything is suppressed without `# border: why`"]


def test_a_narrow_handler_is_allowed(tmp_path: Path) -> None:
    text = "try:\n    pass\nexcept (OSError, ValueError):\n    raise\n"
    assert layers.check(tree(tmp_path, {"ppq_proxy/app.py": text})) == []


@pytest.mark.parametrize(
    "snippet",
    [
        "x = 0.5",
        "x = 1e9",
        "x = 2j",
        "x = float(y)",
        "x = a / b",
        "x /= 2",
        "def f(x: float) -> None: ...",
        "x: float | None",
    ],
)
@pytest.mark.parametrize(
    "file", ["money/ledger.py", "sale.py", "catalog/prices.py", "store/sqlite.py", "payments/l402.py"]
)
def test_binary_fractions_near_money_are_caught(tmp_path: Path, file: str, snippet: str) -> None:
    found = money.check(tree(tmp_path, {f"ppq_proxy/{file}": f"import os\n{snippet}\n"}))
    assert len(found) == 1
    assert found[0].startswith(f"ppq_proxy/{file}:2: ")
    assert money.check(tree(tmp_path, {f"ppq_proxy/{file}": f"import os\n{snippet}  # not money:\n"})) == found
    assert money.check(tree(tmp_path, {f"ppq_proxy/{file}": f"import os\n{snippet}  # not money: seconds\n"})) == []


def test_integers_decimals_and_other_rooms_are_left_alone(tmp_path: Path) -> None:
    files = {
        "ppq_proxy/money/ledger.py": "x = 7 // 2\ny = Decimal('0.5')\ns = 'float 0.5 a / b'\nn = 10**9\n",
        "ppq_proxy/providers/__init__.py": "timeout = 0.5\n",
    }
    assert money.check(tree(tmp_path, files)) == []


def test_a_mark_counts_anywhere_in_a_division_of_several_lines(tmp_path: Path) -> None:
    text = "x = (\n    a\n    / b  # not money: a ratio of times\n)\n"
    assert money.check(tree(tmp_path, {"ppq_proxy/sale.py": text})) == []


@pytest.mark.parametrize("gate", ["layers", "money"])
def test_the_command_prints_offences_and_fails(tmp_path: Path, gate: str) -> None:
    tree(tmp_path, {"ppq_proxy/money/ledger.py": "from ppq_proxy import sale\nx = 0.5\n"})
    run = [sys.executable, "-m", f"tests.gates.{gate}", str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("ppq_proxy/money/ledger.py:")
    tree(tmp_path, {})
    assert subprocess.run(run, capture_output=True, cwd=ROOT, check=False).returncode == 0
