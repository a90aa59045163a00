"""Runs the code that is its argument; see `tests.processes.run_code`."""

import sys

if __name__ == "__main__":
    exec(compile(sys.argv[1], "<a test's code>", "exec"), {"__name__": "__main__"})
