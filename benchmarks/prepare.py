"""Full-size JPEGs to shards: images/s of `prepare` as Ray tasks over all cores, against one process that only decodes.

    python -m benchmarks.prepare FOLDER [--images 2000] [--size 32]

FOLDER holds JPEGs; they are laid into the tar of tars of ILSVRC2012, over and over until there are so many. The bare
loop is Pillow's decoding and BOX alone, in one process, in the same run; nothing can be faster on a core without
decoding something else than the whole JPEG. JPEG's draft mode is not used: its bytes differ.
"""

import argparse
import csv
import io
import os
import tarfile
import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks.lone_worker import changed
from benchmarks.words import count, run_script
from pipeline.errors import UserError
from pipeline.prepare import prepare
from pipeline.presets import PRESETS
from pipeline.ray_cluster import start_cluster
from pipeline.sources.pixels import UNDECODABLE


def lay_out(folder: Path, files: list[Path], images: int) -> int:
    """Write the training tar, a class for each file, and a validation tar of each file once; gives the classes."""
    copies = -(-images // len(files))
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for number, file in enumerate(files):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for copy in range(copies):
                    tar.add(file, f"{wnid(number)}_{copy}.JPEG")
            member = tarfile.TarInfo(f"{wnid(number)}.tar")
            member.size = inner.tell()
            inner.seek(0)
            outer.addfile(member, inner)
    names = [f"ILSVRC2012_val_{number:08d}" for number in range(1, len(files) + 1)]
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for name, file in zip(names, files, strict=True):
            tar.add(file, f"{name}.JPEG")
    with (folder / "LOC_val_solution.csv").open("w") as out:
        csv.writer(out).writerows((name, wnid(number)) for number, name in enumerate(names))
    return len(files)


def wnid(number: int) -> str:
    """A WordNet id, made up."""
    return f"n{number:08d}"


def bare_rate(files: list[Path], size: int) -> float:
    """Images/s of Pillow's decoding and BOX in this process.

    Raises:
        UserError: a file can't be decoded.
    """
    contents = {file: file.read_bytes() for file in files}
    started = time.perf_counter()
    for file, content in contents.items():
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.convert("RGB").resize((size, size), Image.Resampling.BOX)
        except UNDECODABLE as error:
            raise UserError(f"{file}: can't be decoded ({error}); take it out of the folder") from error
    return len(contents) / (time.perf_counter() - started)


def jpegs_in(folder: Path) -> list[Path]:
    """The folder's JPEGs by name.

    Raises:
        UserError: there are none, or there is no such folder.
    """
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [file for file in found if file.suffix.lower() in (".jpg", ".jpeg")]
    if not files:
        raise UserError(f"{folder}: no folder with files *.jpg or *.jpeg; give one that holds full-size JPEGs")
    return files


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=count, default=2000)
    parser.add_argument("--size", type=count, default=32)
    words = parser.parse_args()
    files = jpegs_in(words.folder)
    bare = bare_rate(files, words.size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = {
            "source": name, "source_format": "ilsvrc2012", "num_classes": lay_out(folder, files, words.images),
            "url": f"{name}/shards", "image_size": words.size, "records_per_shard": 100,
        }  # fmt: skip
        cluster = {"num_workers": os.cpu_count(), "cpus_per_worker": 1, "use_gpu": False}
        config = changed(PRESETS["imagenet32"].config, data=data, cluster=cluster)
        start_cluster(1)
        started = time.perf_counter()
        manifests = prepare(config)
        seconds = time.perf_counter() - started
    images = sum(manifest.num_images for manifest in manifests.values())
    size = sum(shard.bytes for manifest in manifests.values() for shard in manifest.shards) / images
    print(
        f"{images:,} images of {sum(file.stat().st_size for file in files) / len(files) / 1000:.0f} kB to "
        f"{words.size}x{words.size}, {size:,.0f} bytes each in the shards: {images / seconds:.0f} images/s on "
        f"{os.cpu_count()} cores, {seconds:.0f} s with the index of the tars; bare decoding {bare:.0f} images/s on one"
    )


if __name__ == "__main__":
    run_script(main)
