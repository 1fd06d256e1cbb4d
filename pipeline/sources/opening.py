"""From data.source_format to the source."""

from pathlib import Path

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.sources.cifar10 import open_cifar10
from pipeline.sources.digits import open_digits
from pipeline.sources.downsampled import open_downsampled
from pipeline.sources.folders import open_class_folders, open_folder
from pipeline.sources.ilsvrc2012 import open_ilsvrc2012
from pipeline.sources.npz import open_npz
from pipeline.sources.source import Source
from pipeline.sources.tars import open_tars
from pipeline.storage import input_url, is_s3

OF_A_PATH = {
    "cifar10-binary": open_cifar10,
    "class-folders": open_class_folders,
    "folder": open_folder,
    "ilsvrc2012": open_ilsvrc2012,
    "downsampled-imagenet": open_downsampled,
    "npz": open_npz,
}
FOLDERS = ("class-folders", "folder", "ilsvrc2012", "downsampled-imagenet", "webdataset")


def open_source(data: Data) -> Source:
    """The images that `data.source` names, in a fixed order.

    Raises:
        UserError: the source isn't there, can't be read or isn't laid out as data.source_format says.
    """
    try:
        return _opened(data)
    except PermissionError as error:
        raise UserError(
            f"data.source {data.source}: {error.filename} can't be read ({error.strerror}); permit it"
        ) from error


def _opened(data: Data) -> Source:
    if data.source_format == "digits":
        return open_digits(data)
    if not data.source:
        raise UserError(
            f"data.source is empty: name the {data.source_format} folder or file to read with --data.source"
        )
    if data.source_format == "webdataset" and is_s3(data.source):
        return open_tars(data)
    if is_s3(data.source):
        raise UserError(f"data.source {data.source}: {data.source_format} is read from folders only; copy it to one")
    path = Path(input_url(data.source))
    if not path.exists():
        raise UserError(f"data.source {data.source}: no such file or folder; correct the path")
    if path.is_file() and data.source_format in FOLDERS:
        raise UserError(f"data.source {data.source}: a file; {data.source_format} wants a folder")
    if data.source_format == "webdataset":
        return open_tars(data.model_copy(update={"source": str(path)}))
    return OF_A_PATH[data.source_format](data, path)
