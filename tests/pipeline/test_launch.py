from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import NoMemoryError
from pipeline.launch import RayWorker, run_on_workers
from tests.conftest import tiny_config


def ask_for_a_petabyte(worker: RayWorker, argument: None) -> dict[str, Any]:
    return {"bytes": torch.empty(10**15, dtype=torch.uint8)}


def test_a_process_that_is_the_one_worker_tells_in_a_line_that_memory_is_out(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, cluster={"num_workers": 0})
    with pytest.raises(NoMemoryError, match=r"ran out of memory .*; lower train\.batch_size"):
        run_on_workers(config, ask_for_a_petabyte, None, f"{tmp_path}/runs/tiny")
