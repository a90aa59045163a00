"""Runs the code that is its argument; see `tests.processes.run_code`."""

import sys

exec(compile(sys.argv[1], "<a test's code>", "exec"), {"__name__": "__main__"})
