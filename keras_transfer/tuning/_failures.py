"""Why trials fail: the reason in a line, and the rest for those who want to know."""

from __future__ import annotations

import pathlib
import re
import traceback

from keras_transfer.tuning._state_files import read_state, write_state

FILE = "failure.json"
TRACEBACK = "Traceback (most recent call last)"
_MODULES = re.compile(r"^(\w+\.)+(?=\w+(:|$))")  # of an error's class


def reason_of(error: BaseException) -> str:
    """Returns the reason in the first line, and the traceback below it."""
    name = type(error).__name__
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    known = name in ("FailedTrialError", "LostTrialError", "FailedElsewhereError")
    line = first if known else f"{name}: {first}" if first else name
    return "\n".join([line, *traceback.format_exception(error)])


def short(message: str | None) -> str:
    """Returns the line of a trial's message that says why."""
    lines = (message or "").strip().splitlines()
    if not lines:
        return "the objective is not a number"
    if not lines[0].startswith(TRACEBACK):
        return lines[0].strip()
    # KerasTuner's own messages are tracebacks. The error stands behind the last one's indented
    # lines, and may have several lines itself.
    last = max(number for number, line in enumerate(lines) if line.startswith(TRACEBACK))
    below = [line for line in lines[last + 1 :] if line.strip() and not line.startswith(" ")]
    error = _MODULES.sub("", below[0] if below else lines[-1])
    return error.removeprefix("FailedTrialError: ").strip()


def write_reason(directory: pathlib.Path, message: str) -> None:
    """Keeps a message with the trial: KerasTuner does not send it to the chief."""
    write_state(directory / FILE, {"message": message})


def read_reason(directory: pathlib.Path) -> str | None:
    """Returns the message that lies with a trial, if there is one."""
    try:
        return str(read_state(directory / FILE)["message"])
    except FileNotFoundError:
        return None
