"""The architecture as a check: which way imports run, how long things get, where everything may be caught.

    python -m tests.gates.layers [ROOT]

Every import counts, relative or absolute, at the top or inside a function, or by name through `import_module`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("ppq_proxy", "private_mode_proxy")

# From the top down. A room imports what is below it; rooms side by side may import each other as long as that makes no
# circle. The longest name that fits counts, and a module that fits none is an offence: give it a place here.
LAYERS = tuple(
    frozenset(names.split())
    for names in (
        "__main__ cli private_mode_proxy",
        "serving doctor console",
        "app server",
        "dialects web",
        "sale checkout delivery idempotency payers shelf front telemetry",
        "money catalog metering payments providers work local_model",
        "store",
        "money.amounts errors settings exchange histogram ppq_proxy",
    )
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}

# The private-mode proxy runs on its users' machines and stands alone.
APART = frozenset({"private_mode_proxy"})

MODULE_LINES = 450
FUNCTION_LINES = 60
# "path" or "path::function" → why it may be longer.
LONGER: dict[str, str] = {}

BORDER = re.compile(r"#\s*border:\s*\S")
CATCH_ALL = ("Exception", "BaseException")


def check(root: Path, longer: dict[str, str] | None = None) -> list[str]:
    """Every offence below `root`, as `path:line: what`."""
    excused = LONGER if longer is None else longer
    files = sorted(file for package in PACKAGES for file in (root / package).rglob("*.py"))
    modules = {module_name(file.relative_to(root)): file for file in files}
    found: list[str] = []
    edges: dict[tuple[str, str], str] = {}
    used: set[str] = set()
    for name, file in modules.items():
        if not room(name):
            found.append(f"{file.relative_to(root).as_posix()}:1: no layer, give it one in tests/gates/layers.py")
        source = file.read_text()
        tree = ast.parse(source, str(file))
        path = file.relative_to(root).as_posix()
        lines = source.splitlines()
        found += [f"{path}:{line}: {what}" for line, what in catches(tree, lines)]
        for key, line, size, most in sizes(path, tree, len(lines)):
            if size > most and key not in excused:
                found.append(f"{path}:{line}: {key} has {size} lines, {most} are allowed")
            elif size > most:
                used.add(key)
        for line, target in dict.fromkeys(imports(name, file.name == "__init__.py", tree, modules)):
            if offence := crossing(name, target):
                found.append(f"{path}:{line}: {offence}")
            elif room(name) and room(target) and room(name) != room(target):
                edges.setdefault((room(name), room(target)), f"{path}:{line}")
    found += [f"{key}: excused as long, but no longer is" for key in sorted(excused.keys() - used)]
    return found + circles(edges)


def module_name(path: Path) -> str:
    """`ppq_proxy/money/__init__.py` → `ppq_proxy.money`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The longest entry of the table that a module belongs to, empty where there is none.

    The entry `ppq_proxy` is only the package's own `__init__`: a new module has to be given a place.
    """
    parts = module.removeprefix("ppq_proxy.").split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in RANK), "")


def crossing(importer: str, target: str) -> str:
    """What is wrong with one import, empty where nothing is."""
    here, there = room(importer), room(target)
    if target.split(".")[0] == "tests":
        return f"{importer} imports {target}: the product does not know its tests"
    if here != there and APART & {here, there}:
        return f"{importer} imports {target}: they stand apart"
    if here and there and RANK[here] > RANK[there]:
        return f"{importer} imports {target}, which is above it"
    return ""


def imports(importer: str, package: bool, tree: ast.AST, modules: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Each import of our own, and of the tests, as line and module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = importer.split(".")
                above = parts[: len(parts) - node.level + package]
                base = ".".join([*above, *([base] if base else [])])
            # `from ppq_proxy.money import ledger` means the module, where there is one of that name.
            inner = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if name in modules else base for name in inner]
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            targets = [str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        else:
            continue
        for target in targets:
            if target.split(".")[0] in (*PACKAGES, "tests"):
                yield node.lineno, target


def called(node: ast.Call) -> str:
    """The last part of the name that is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def sizes(path: str, tree: ast.AST, lines: int) -> Iterator[tuple[str, int, int, int]]:
    """Of the module and each function in it: its key in `LONGER`, its line, its length and the most allowed."""
    yield path, 1, lines, MODULE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path}::{node.name}", node.lineno, (node.end_lineno or 0) - node.lineno + 1, FUNCTION_LINES


def catches(tree: ast.AST, lines: list[str]) -> Iterator[tuple[int, str]]:
    """Handlers of everything that do not say, on their line, at which border they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type is None or names_all(node.type)
            what = "everything is caught"
        elif isinstance(node, ast.Call) and called(node) == "suppress":
            caught = any(map(names_all, node.args))
            what = "everything is suppressed"
        else:
            continue
        if caught and not BORDER.search(lines[node.lineno - 1]):
            yield node.lineno, f"{what} without `# border: why`"


def names_all(expression: ast.expr) -> bool:
    """Whether `Exception` or `BaseException` is among the types that an expression names."""
    return any(isinstance(part, ast.Name) and part.id in CATCH_ALL for part in ast.walk(expression))


def circles(edges: dict[tuple[str, str], str]) -> list[str]:
    """Rooms that import each other, directly or through others; only rooms side by side can."""
    found = []
    for (here, there), where in sorted(edges.items()):
        reached, todo = {there}, [there]
        while todo:
            current = todo.pop()
            for a, b in edges:
                if a == current and b not in reached:
                    reached.add(b)
                    todo.append(b)
        if here in reached:
            found.append(f"{where}: {here} imports {there}, which leads back to {here}")
    return found


def main() -> int:
    """Print every offence; 1 where there is one."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    found = check(root)
    sys.stdout.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
