"""Runs a page's blocks in order, in the current folder: `python run_page.py < JSON`.

The JSON is a list of [language, text, place]. Python blocks share a namespace; shell blocks stop at the
first command that fails.
"""

import json
import subprocess
import sys


def run(steps: list[tuple[str, str, str]]) -> None:
    """Runs them; what fails ends it."""
    namespace = {"__name__": "__main__"}
    for language, text, place in steps:
        print(f"--- {place}", flush=True)
        if language == "python":
            # Blank lines first, so that a traceback names the page's own line.
            page, _, line = place.rpartition(":")
            exec(compile("\n" * (int(line) - 1) + text, page, "exec"), namespace)
            sys.stdout.flush()
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    run(json.load(sys.stdin))
