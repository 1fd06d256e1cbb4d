"""A trained and registered run behind `mlflow models serve`, asked over HTTP."""

import base64
import io
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.train import job as train_job
from pipeline.config import Config
from pipeline.runs import run_sampling
from tests.conftest import BIN, free_port, listening, wait_until
from tests.pipeline.test_train import changed


@contextmanager
def served(uri: str, folder: Path) -> Iterator[int]:
    """The port of `mlflow models serve`, started in a folder of its own without this repository on its path."""
    folder.mkdir()
    port = free_port()
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    command = [
        "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local", "--host", "127.0.0.1",
        "--port", str(port),
    ]  # fmt: skip
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )  # fmt: skip
    try:
        wait_until(lambda: server.poll() is not None or listening(port), 120, "mlflow models serve")
        assert server.poll() is None, (folder / "server.log").read_text()
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def ask(port: int, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(request).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def answers(port: int, rows: list[dict[str, Any]], **params: Any) -> list[dict[str, Any]]:
    status, answer = ask(port, {"dataframe_records": rows, "params": params})
    assert status == 200, answer
    return answer["predictions"]


def refusal(port: int, rows: list[dict[str, Any]], **params: Any) -> str:
    status, answer = ask(port, {"dataframe_records": rows, "params": params})
    assert status == 400, answer
    return answer["message"]


@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's own, of its own types
def test_a_run_registered_by_train_answers_over_http(
    digits: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(
        digits,
        cluster={"num_workers": 0},
        run={"sample_interval": 100},
        sample={"count": 10, "grid_columns": 1, "seed": 5},
        tracking={"register_as": "figures"},
    )
    train_job(config)
    assert "registered figures version 1 as champion (there was no champion): " in capsys.readouterr().out
    drawn = run_sampling(config)
    with np.load(Path(drawn["url"]) / "samples.npz") as arrays:
        expected = dict(arrays)

    with served("models:/figures@champion", tmp_path / "server") as port:
        rows = [{"label": int(label)} for label in expected["labels"]]
        arrays = answers(port, rows, seed=5, format="array")
        np.testing.assert_array_equal(np.array([row["array"] for row in arrays]), expected["images"])
        pictures = answers(port, rows, seed=5)
        for row, image in zip(pictures, expected["images"], strict=True):
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["png"])), formats=["PNG"]))
            np.testing.assert_array_equal(picture, np.round(image[0] * (255 / 16)))
        scored = answers(
            port, [given | {"png": row["png"]} for given, row in zip(rows, pictures, strict=True)], task="score"
        )
        np.testing.assert_allclose([row["nats"] for row in scored], expected["nats"], rtol=1e-5)
        (completed,) = answers(port, [rows[0] | {"array": arrays[0]["array"], "keep_rows": 4}], format="array", seed=99)
        assert completed["array"][0][:4] == arrays[0]["array"][0][:4]
        assert completed["array"][0][4:] != arrays[0]["array"][0][4:]
        (mixed,) = answers(port, [{"vector": [0.5, 0.5] + [0.0] * 8}])
        assert mixed["seed"] == 0
        assert "column label, row 0: 12 is no class; send 0 to 9" in refusal(port, [{"label": 12}])
        assert "column label is missing" in refusal(port, [{"seed": 1}])
        assert "column array, row 0: got the shape [1, 1, 1]" in refusal(
            port, [{"label": 1, "array": [[[1]]]}], task="score"
        )
        assert "no row with one of the columns label" in refusal(port, [{"lable": 1}])
        assert "column label" in refusal(port, [{"label": "three"}])
