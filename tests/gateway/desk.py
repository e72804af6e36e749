"""The command line kept warm: runs `ppq-proxy` commands given as JSON lists, one a line, without starting Python for each.

Prints {"code", "out", "err"} for each, one a line. A test asks the books hundreds of times; starting an interpreter takes
longer than all that the command does.
"""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import typer

from ppq_proxy.cli import cli


def run(command: Callable[..., Any], arguments: list[str]) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command(arguments, prog_name="ppq-proxy")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return code, out.getvalue(), err.getvalue()


def main() -> None:
    command = typer.main.get_command(cli)
    for line in sys.stdin:
        code, out, err = run(command, json.loads(line))
        print(json.dumps({"code": code, "out": out, "err": err}), flush=True)


if __name__ == "__main__":
    main()
