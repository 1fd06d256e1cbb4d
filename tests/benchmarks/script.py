"""A script of benchmarks run as a person does, in this process."""

import runpy
import sys

import pytest


def what_ends(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What `python -m benchmarks.WORDS` ends with, where it ends as a script does that has something to tell."""
    module = f"benchmarks.{words[0]}"
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as told:
        runpy.run_module(module, run_name="__main__")
    return str(told.value)
