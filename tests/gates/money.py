"""No binary fraction may touch money: where money is computed there is no float literal, `float`, or true division.

    python -m tests.gates.money [ROOT]

A line that measures something else says so: `# not money: seconds`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("money", "sale.py", "catalog/prices.py", "store", "payments")
MARK = re.compile(r"#\s*not money:\s*\S")


def check(root: Path) -> list[str]:
    """Every offence below `root`, as `path:line: what`."""
    found = []
    for file in sorted(file for room in ROOMS for file in python_files(root / "ppq_proxy" / room)):
        lines = file.read_text().splitlines()
        for node, what in floats(ast.parse("\n".join(lines), str(file))):
            if not MARK.search("\n".join(lines[node.lineno - 1 : node.end_lineno])):
                found.append(f"{file.relative_to(root).as_posix()}:{node.lineno}: {what} without `# not money: why`")
    return found


def python_files(room: Path) -> Iterator[Path]:
    """The modules of a room, which is a folder or a file and need not exist yet."""
    if room.is_dir():
        yield from room.rglob("*.py")
    elif room.exists():
        yield room


def floats(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Everything that is a binary fraction or makes one, and what it is."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=float() | complex() as value):
                yield node, f"float literal {value}"
            case ast.Name(id="float"):
                yield node, "float"
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                yield node, "true division"
            case _:
                pass


def main() -> int:
    """Print every offence; 1 where there is one."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    found = check(root)
    sys.stdout.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
