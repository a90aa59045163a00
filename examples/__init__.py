"""Examples: scripts to run from the repository's root, such as `python examples/quickstart.py`."""
