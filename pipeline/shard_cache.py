"""Shards kept on a host's disk for all its workers, so that later epochs read no object storage."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from pipeline.errors import UserError
from pipeline.manifest import Shard

PART_SUFFIX = ".part"


class ShardCache:
    """Whole shards in a folder, named by their sha256; the least recently used go first where it would grow too large.

    Processes share it: one of them reads a shard that is missing, the others wait for it. A kill at any moment
    leaves no half a shard behind that would be taken for a whole one: files appear whole, and are checked when read.
    """

    def __init__(self, folder: str, most_bytes: float) -> None:
        """Make the folder where there is none.

        Raises:
            UserError: it can't be made, or nothing can be written there.
        """
        self._folder, self._most_bytes = Path(folder), most_bytes
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(
                f"data.cache_folder {folder}: {error.strerror}; name a folder that each host's workers can write to"
            ) from error

    def get(self, shard: Shard, load: Callable[[], bytes]) -> bytes:
        """The shard's bytes, from the folder or from `load`, which gives them checked."""
        path = self._folder / f"{shard.sha256}.tar"
        with FileLock(self._folder / f"{shard.sha256}.lock"):
            content = _sound(path, shard)
            if content is None:
                content = load()
                self._keep(path, content)
        return content

    def _keep(self, path: Path, content: bytes) -> None:
        if len(content) > self._most_bytes:
            return
        with FileLock(self._folder / "writing.lock"):
            # Only who holds this lock writes, so these are a killed writer's.
            for part in self._folder.glob(f"*{PART_SUFFIX}"):
                part.unlink()
            self._make_room(len(content), path)
            part = path.with_suffix(PART_SUFFIX)
            try:
                part.write_bytes(content)
                part.replace(path)
            except OSError as error:
                part.unlink(missing_ok=True)
                warnings.warn(
                    f"data.cache_folder {self._folder}: {error.strerror}; the shard is not kept, training goes on",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _make_room(self, wanted: int, new: Path) -> None:
        kept = sorted((file.stat().st_mtime_ns, file.stat().st_size, file) for file in self._folder.glob("*.tar"))
        total = wanted + sum(size for _, size, file in kept if file != new)
        for _, size, file in kept:
            if total <= self._most_bytes:
                break
            if file != new:
                file.unlink()
                total -= size


def _sound(path: Path, shard: Shard) -> bytes | None:
    """The file's bytes if they are the shard's, and then it counts as used now."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            return None
        os.utime(path)
    except FileNotFoundError:  # or another process made room meanwhile
        return None
    return content
