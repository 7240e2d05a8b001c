"""Runs scripts up to where they have read their arguments: the real parsers, and nothing after them.

    python stop_at_arguments.py < a JSON list of commands, each a list: "-m", module or path, arguments

Prints a JSON list: for each command null, or what is wrong with it.
"""

import argparse
import contextlib
import io
import json
import runpy
import sys


class Parsed(BaseException):
    """The arguments were read."""


_parse = argparse.ArgumentParser.parse_args


def _stop(self, *given, **keywords):
    _parse(self, *given, **keywords)
    raise Parsed


def problem(command):
    """What a script says to its arguments, None if it takes them."""
    module = command[0] == "-m"
    name, *arguments = command[1:] if module else command
    sys.argv = [name, *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            (runpy.run_module if module else runpy.run_path)(name, run_name="__main__")
    except Parsed:
        return None
    except SystemExit:
        return said.getvalue() or "it ended before it read its arguments"
    return "it reads no arguments"


if __name__ == "__main__":
    argparse.ArgumentParser.parse_args = _stop
    print(json.dumps([problem(command) for command in json.load(sys.stdin)]))
