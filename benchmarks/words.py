"""A script's words, the programs that it runs, and how it ends where a person has something to mend."""

import argparse
import math
import subprocess
from collections.abc import Callable, Sequence

from pipeline.errors import UserError


def count(text: str) -> int:
    """A whole number of 1 or more, as argparse's type of an argument."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0, as argparse's type of an argument."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def run_program(name: str, words: Sequence[str], environment: dict[str, str], folder: str | None = None) -> None:
    """Run a program to its end, in this folder where none is given; what it says is shown as it comes.

    Raises:
        UserError: its status isn't 0.
    """
    status = subprocess.call(words, cwd=folder, env=environment)
    if status:
        raise UserError(f"{name} ended with status {status}; what it said stands above")


def run_script(main: Callable[[], None]) -> None:
    """Do the script's work; what a person can mend ends it with one line and status 1, as a job's does."""
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
