"""A machine so slow that Ray gives up on its own processes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import Config
from tests.integration.test_two_workers import words_for

SLOW_ONCE = """
import os, sys, time

first = os.environ["FIRST_AGENT"]
if any(word.endswith("dashboard/agent.py") for word in sys.orig_argv) and not os.path.exists(first):
    open(first, "w").close()
    time.sleep(20)
"""
"""A sitecustomize.py, which Python runs as it starts; a raylet waits 15 s for its agent."""


@pytest.mark.cluster
def test_a_job_goes_on_where_rays_agent_was_too_slow_once(
    tmp_path: Path, digits: Config, run_job: Callable[..., tuple[int, str]]
) -> None:
    site, first = tmp_path / "site", tmp_path / "first-agent"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SLOW_ONCE)
    words = [*words_for(str(tmp_path), "slow", 10, 10), "--cluster.num-workers", "1"]
    status, told = run_job("jobs.train", "digits", *words, PYTHONPATH=str(site), FIRST_AGENT=str(first))
    assert first.exists()
    assert "warning: Ray did not come up, try 1 of 3: The current node timed out during startup" in told
    assert "try 2 of 3" not in told
    assert status == 0, told
    assert "step 10/10" in told
