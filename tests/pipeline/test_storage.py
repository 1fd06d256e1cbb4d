import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs
import pytest

from pipeline import storage
from pipeline.arrow_storage import filesystem_of
from pipeline.errors import UserError
from pipeline.submitted_job import JOB_VARIABLE


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("s3")


def test_what_is_written_is_read_listed_and_deleted(root: str) -> None:
    assert storage.names_below(root) == []
    storage.write(f"{root}/a/b.bin", b"one")
    storage.write(f"{root}/a/b.bin", b"two")
    storage.write(f"{root}/c.bin", b"")
    assert storage.read(f"{root}/a/b.bin") == b"two"
    assert storage.names_below(root) == ["a/b.bin", "c.bin"]
    assert storage.names_below(f"{root}/a") == ["b.bin"]
    assert storage.exists(f"{root}/a/b.bin")
    assert not storage.exists(f"{root}/a/c.bin")
    storage.delete(f"{root}/c.bin")
    storage.delete(f"{root}/c.bin")
    storage.delete_below(f"{root}/a")
    assert storage.names_below(root) == []


def test_more_names_than_a_page_of_the_server_holds_are_listed(s3: str) -> None:
    names = [f"{number:04d}" for number in range(1_100)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: storage.write(f"{s3}/{name}", b""), names))
    assert storage.names_below(s3) == names


def test_nothing_at_the_url_is_told_apart_from_trouble(root: str) -> None:
    with pytest.raises(storage.MissingObjectError, match=r"absent.*check the"):
        storage.read(f"{root}/absent")


def test_missing_bucket_is_named_with_the_remedy(s3: str) -> None:
    for operation in (storage.read, storage.exists, storage.names_below):
        with pytest.raises(UserError, match="the bucket 'nowhere' does not exist; create it"):
            operation("s3://nowhere/key")
    with pytest.raises(UserError, match="the bucket 'nowhere' does not exist"):
        storage.write("s3://nowhere/key", b"x")


def test_refused_credentials_are_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for operation in (storage.read, storage.exists, storage.names_below):
        with pytest.raises(UserError, match=r"refused the credentials.*check AWS_PROFILE"):
            operation(f"{s3}/key")


def test_absent_credentials_and_endpoint_are_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(UserError, match=r"no AWS credentials.*set AWS_PROFILE"):
        storage.read(f"{s3}/key")


def test_endpoint_and_keys_come_from_a_profile(
    s3: str, s3_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["[profile lab]", f"endpoint_url = {s3_server.environment['AWS_ENDPOINT_URL']}", "region = us-east-1",
             "aws_access_key_id = key", "aws_secret_access_key = secret"]  # fmt: skip
    (tmp_path / "config").write_text("\n".join(lines) + "\n")
    for name in s3_server.environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    storage.write(f"{s3}/key", b"x")
    assert storage.read(f"{s3}/key") == b"x"


def test_other_schemes_are_refused() -> None:
    with pytest.raises(UserError, match="gs://bucket: only s3://"):
        storage.absolute_url("gs://bucket")


def test_relative_folders_become_absolute_and_leave_a_submitted_jobs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute_url("runs") == str(tmp_path / "runs")
    assert storage.absolute_url("s3://b/p/") == "s3://b/p"
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.absolute_url("runs") == str(tmp_path / "home" / "pixelcnn-ray" / "runs")
    assert storage.absolute_url("/abs") == "/abs"


def test_what_came_with_a_submitted_job_is_read_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.input_url("best.json") == str(tmp_path / "best.json")
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    assert storage.input_url("best.json") == str(tmp_path / "home/pixelcnn-ray/best.json")
    (tmp_path / "best.json").touch()
    assert storage.input_url("best.json") == str(tmp_path / "best.json")
    assert storage.input_url("~/none") == str(tmp_path / "home/none")
    assert storage.input_url("s3://b/p/") == "s3://b/p"
    with pytest.raises(UserError, match="gs://bucket: only s3://"):
        storage.input_url("gs://bucket")


def test_full_disk_is_told_and_leaves_nothing_half_written(small_disk: Path) -> None:
    storage.write(f"{small_disk}/small", b"x" * 1000)
    with pytest.raises(UserError, match="large: the disk is full; free space"):
        storage.write(f"{small_disk}/large", b"x" * 1_000_000)
    assert storage.names_below(str(small_disk)) == ["small"]


def test_arrow_file_system_over_object_storage_does_what_ray_train_asks(s3: str) -> None:
    filesystem, path = filesystem_of(f"{s3}/run")
    filesystem = pickle.loads(pickle.dumps(filesystem))
    filesystem.create_dir(path)
    for content in (b"first", b"second"):
        with filesystem.open_output_stream(f"{path}/step-1/state") as stream:
            stream.write(content)
    assert filesystem.open_input_stream(f"{path}/step-1/state").read() == b"second"
    kinds = pyarrow.fs.FileType
    found = filesystem.get_file_info([f"{path}/step-1", f"{path}/step-1/state", f"{path}/none"])
    assert [info.type for info in found] == [kinds.Directory, kinds.File, kinds.NotFound]
    listed = filesystem.get_file_info(pyarrow.fs.FileSelector(path))
    assert [(info.base_name, info.type) for info in listed] == [("step-1", kinds.Directory)]
    filesystem.copy_file(f"{path}/step-1/state", f"{path}/copy")
    filesystem.delete_dir(f"{path}/step-1")
    assert storage.names_below(f"{s3}/run") == ["copy"]
