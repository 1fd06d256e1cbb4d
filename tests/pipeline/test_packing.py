import importlib
import importlib.metadata
import re
from pathlib import Path

import pytest
import torch

from models.lstm_scan import lstm_scan
from pipeline import packing
from pipeline.packing import pack


def test_the_served_model_travels_with_models_and_little_of_the_pipeline(tmp_path: Path) -> None:
    packed = pack("pipeline.served_model", tmp_path)
    files = {str(path.relative_to(packed.folder)) for path in packed.folder.rglob("*.py")}
    assert {"__init__.py", "models/__init__.py", "models/sampling.py", "pipeline/served_model.py"} <= files
    assert not files & {"pipeline/storage.py", "pipeline/launch.py", "pipeline/shards.py", "pipeline/mlflow_run.py"}
    assert packed.module == f"{packed.folder.name}.pipeline.served_model"
    text = "".join((packed.folder / name).read_text() for name in files)
    assert f"from {packed.folder.name}.models.sampling import" in text
    assert not re.search(r"^\s*(from|import) (models|pipeline)\b", text, re.MULTILINE)
    names = [requirement.partition("==")[0] for requirement in packed.requirements]
    assert {"torch", "numpy", "mlflow", "pillow", "safetensors"} <= set(names)
    assert not {"ray", "webdataset", "boto3", "botocore", "mlflow-skinny", "pixelcnn-ray"} & set(names)
    for requirement in packed.requirements:
        name, version = requirement.split("==")
        assert importlib.metadata.version(name).partition("+")[0] == version
    assert pack("pipeline.served_model", tmp_path / "again").folder.name == packed.folder.name


def test_other_code_gets_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours").mkdir()
    monkeypatch.setattr(packing, "OURS", ("ours",))
    monkeypatch.setattr(packing, "IMPORT", re.compile(r"^(\s*from )(ours)(?=[.\s])", re.MULTILINE))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ours" / "__init__.py").touch()
    (tmp_path / "ours" / "below.py").write_text("VALUE = 1\n")
    (tmp_path / "ours" / "top.py").write_text("import json\nfrom ours.below import VALUE\n")
    first = pack("ours.top", tmp_path / "first")
    (tmp_path / "ours" / "below.py").write_text("VALUE = 2\n")
    second = pack("ours.top", tmp_path / "second")
    assert first.requirements == ()
    assert first.folder.name != second.folder.name
    for packed, value in ((first, 1), (second, 2)):
        monkeypatch.syspath_prepend(packed.folder.parent)
        assert value == importlib.import_module(packed.module).VALUE
    (tmp_path / "ours" / "top.py").write_text("import ours.below\n")
    with pytest.raises(AssertionError, match="can't be packed"):
        pack("ours.top", tmp_path / "third")


def test_operators_of_a_packed_copy_and_of_this_checkout_stay_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack("models.lstm_scan", tmp_path)
    source = packed.folder / "models" / "lstm_scan.py"
    above, below = source.read_text().rsplit("return hidden, ", 1)
    source.write_text(f"{above}return hidden + 1, {below}")
    inputs, kernel = torch.randn(2, 3, 3, 1, 8), torch.randn(1, 3, 2, 8)
    here = lstm_scan(inputs, kernel, diagonal=False)
    monkeypatch.syspath_prepend(tmp_path)
    copy = importlib.import_module(packed.module)
    assert torch.equal(copy.lstm_scan(inputs, kernel, diagonal=False), here + 1)
    assert torch.equal(lstm_scan(inputs, kernel, diagonal=False), here)
