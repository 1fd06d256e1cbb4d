"""Object storage as Ray Train asks for it: a pyarrow file system over the same door as everything else.

pyarrow's own S3 client knows neither AWS profiles' endpoints nor servers that refuse its empty directory objects.
Paths are bucket/key; there are no directories to create.
"""

import io
from typing import Any

import pyarrow
import pyarrow.fs

from pipeline import storage


def filesystem_of(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a storage URL and the path on it."""
    if not storage.is_s3(url):
        return pyarrow.fs.LocalFileSystem(), url
    return pyarrow.fs.PyFileSystem(ObjectStorageHandler()), url.removeprefix("s3://")


class ObjectStorageHandler(pyarrow.fs.FileSystemHandler):
    """What Ray Train does with its run folder: look, read, write whole objects, delete."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectStorageHandler)

    def get_type_name(self) -> str:
        return "pixelcnn-s3"

    def normalize_path(self, path: str) -> str:
        return path.rstrip("/")

    def get_file_info(self, paths: list[str]) -> list[pyarrow.fs.FileInfo]:
        return [pyarrow.fs.FileInfo(path, _type_of(path)) for path in paths]

    def get_file_info_selector(self, selector: pyarrow.fs.FileSelector) -> list[pyarrow.fs.FileInfo]:
        names = storage.names_below(_url(selector.base_dir))
        files = [name for name in names if selector.recursive or "/" not in name]
        folders = sorted({name.split("/")[0] for name in names if "/" in name})
        told = [(name, pyarrow.fs.FileType.File) for name in files]
        told += [(name, pyarrow.fs.FileType.Directory) for name in folders]
        return [pyarrow.fs.FileInfo(f"{selector.base_dir}/{name}", kind) for name, kind in told]

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: a prefix is there as soon as an object has it."""

    def delete_dir(self, path: str) -> None:
        storage.delete_below(_url(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        storage.delete_below(_url(path))

    def delete_root_dir_contents(self) -> None:
        raise PermissionError("emptying all of object storage is not something that a run does")

    def delete_file(self, path: str) -> None:
        storage.delete(_url(path))

    def move(self, source: str, destination: str) -> None:
        self.copy_file(source, destination)
        self.delete_file(source)

    def copy_file(self, source: str, destination: str) -> None:
        storage.write(_url(destination), storage.read(_url(source)))

    def open_input_stream(self, path: str) -> pyarrow.NativeFile:
        return pyarrow.BufferReader(storage.read(_url(path)))

    def open_input_file(self, path: str) -> pyarrow.NativeFile:
        return self.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> pyarrow.NativeFile:
        return pyarrow.PythonFile(_WholeObject(_url(path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pyarrow.NativeFile:
        raise OSError(f"{path}: objects in object storage can't be appended to")


class _WholeObject(io.BytesIO):
    """Bytes that become an object when the file is closed."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def close(self) -> None:
        if not self.closed:
            storage.write(self._url, self.getvalue())
        super().close()


def _url(path: str) -> str:
    return f"s3://{path}"


def _type_of(path: str) -> pyarrow.fs.FileType:
    if "/" in path and storage.exists(_url(path)):
        return pyarrow.fs.FileType.File
    return pyarrow.fs.FileType.Directory if storage.names_below(_url(path)) else pyarrow.fs.FileType.NotFound
