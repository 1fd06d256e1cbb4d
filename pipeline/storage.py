"""The door to object storage: the same few operations on s3://bucket/key and on local files.

Endpoint, region and credentials come from the standard AWS environment and profile chain through boto3
(AWS_PROFILE, AWS_ENDPOINT_URL and so on). It is imported where a URL is s3://, so folders need no boto3.
"""

import errno
import functools
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import LastingError, UserError
from pipeline.submitted_job import JOB_VARIABLE

READ_TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""
READ_PAUSES = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds before a broken body is asked for again, each time."""
READ_PIECE = 1 << 20
ATTEMPTS = 6
"""How often boto3 asks by itself, within about 15 s."""
PATIENCE = 120.0
"""Seconds for which a patient process goes on to ask storage that doesn't answer."""
PAUSE = 2.0
"""Mean seconds between two of its questions."""
BUSY = 429

MISSING_KEY = ("NoSuchKey", "404", "NotFound")
REFUSED = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "Forbidden")


_resumed = 0
_count = threading.Lock()
_patience = 0.0


class MissingObjectError(UserError):
    """There is nothing at the URL."""


def be_patient(seconds: float = PATIENCE) -> None:
    """Have this process go on for so long to ask object storage that doesn't answer, instead of boto3's own 15 s."""
    global _patience
    _patience = seconds


def is_s3(url: str) -> bool:
    """Whether the URL names object storage; everything else is a local path."""
    return url.startswith("s3://")


def absolute_url(url: str) -> str:
    """The URL as every process can use it: folders from the current one, in a submitted job from ~/pixelcnn-ray.

    Raises:
        UserError: a scheme other than s3://, or that without a bucket.
    """
    if is_s3(url):
        _split(url)
        return url.rstrip("/")
    if "://" in url:
        raise UserError(f"{url}: only s3://bucket/prefix and local folders are storage; copy the data to one of them")
    home = Path.home() / "pixelcnn-ray" if JOB_VARIABLE in os.environ else Path.cwd()
    return os.path.abspath(home / Path(url).expanduser())


def input_url(url: str) -> str:
    """The same of what is only read: if it came with the submitted job, it is in that job's own folder.

    Raises:
        UserError: see `absolute_url`.
    """
    here = os.path.abspath(Path(url).expanduser())
    return here if "://" not in url and os.path.exists(here) else absolute_url(url)


def join(url: str, *parts: str) -> str:
    """The URL of something below `url`."""
    return "/".join([url.rstrip("/"), *parts])


def read(url: str, start: int = 0, size: int | None = None) -> bytes:
    """The bytes at the URL: all of them, or `size` from `start` on.

    Raises:
        MissingObjectError: there is nothing.
        UserError: bucket, credentials or endpoint are wrong.
    """
    with _explained(url):
        if is_s3(url):
            bucket, key = _split(url)
            return _get(bucket, key, start, size)
        with Path(url).open("rb") as file:
            file.seek(start)
            return file.read(-1 if size is None else size)


def write(url: str, content: bytes) -> None:
    """Put the bytes at the URL, whole or not at all.

    Raises:
        UserError: bucket, credentials or endpoint are wrong, or the disk is full.
    """
    with _explained(url):
        if is_s3(url):
            bucket, key = _split(url)
            _ask("put_object", Bucket=bucket, Key=key, Body=content)
            return
        path = Path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def exists(url: str) -> bool:
    """Whether there is an object or file at the URL."""
    with _explained(url):
        if not is_s3(url):
            return Path(url).is_file()
        import botocore.exceptions

        bucket, key = _split(url)
        try:
            _ask("head_object", Bucket=bucket, Key=key)
        except botocore.exceptions.ClientError as error:
            if _code(error) not in MISSING_KEY:
                raise
            _ask("head_bucket", Bucket=bucket)
            return False
        return True


def files_below(root: Path) -> list[Path]:
    """Sorted files below the folder, links followed but for those to a folder that they lie in; none without it.

    Raises:
        OSError: a folder can't be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise error

    found: list[Path] = []
    for name, inner, files in os.walk(root, onerror=refuse, followlinks=True):
        folder, real = Path(name), Path(name).resolve()
        above = (real, *real.parents)
        inner[:] = [one for one in inner if not ((folder / one).is_symlink() and (folder / one).resolve() in above)]
        found += [folder / one for one in files if (folder / one).is_file()]
    return sorted(found)


def names_below(url: str) -> list[str]:
    """Sorted paths, relative to the URL, of every object or file below it; empty where there is nothing."""
    with _explained(url):
        if not is_s3(url):
            root = Path(url)
            return sorted(path.relative_to(root).as_posix() for path in files_below(root))
        bucket, key = _split(url)
        prefix = key.rstrip("/") + "/" if key else ""
        found: list[str] = []
        page: dict[str, Any] = {"IsTruncated": True}
        while page["IsTruncated"]:
            after = {"ContinuationToken": page["NextContinuationToken"]} if "NextContinuationToken" in page else {}
            page = _ask("list_objects_v2", Bucket=bucket, Prefix=prefix, **after)
            found += [entry["Key"].removeprefix(prefix) for entry in page.get("Contents", [])]
        return sorted(name for name in found if name and not name.endswith("/"))


def delete(url: str) -> None:
    """Remove the object or file at the URL; nothing happens where there is none."""
    with _explained(url):
        if is_s3(url):
            bucket, key = _split(url)
            _ask("delete_object", Bucket=bucket, Key=key)
        else:
            Path(url).unlink(missing_ok=True)


def delete_below(url: str) -> None:
    """Remove everything below the URL."""
    if is_s3(url):
        for name in names_below(url):
            delete(join(url, name))
    else:
        shutil.rmtree(url, ignore_errors=True)


def reads_resumed() -> int:
    """How often a read of this process went on after its connection had broken, timed out or ended early."""
    return _resumed


def _get(bucket: str, key: str, start: int, size: int | None) -> bytes:
    """The bytes of an object; where a body breaks off, the rest of the same version is asked for, after a while.

    boto3 by itself asks again for answers that never begin (503, refused connections), not for bodies that break off.
    """
    import botocore.exceptions

    global _resumed
    received, end = bytearray(), "" if size is None else start + size - 1
    same: dict[str, str] = {}
    for pause in (*READ_PAUSES, None):
        first = start + len(received)
        part = {"Range": f"bytes={first}-{end}"} if first or size is not None else {}
        answer = _ask("get_object", Bucket=bucket, Key=key, **part, **same)
        same = {"IfMatch": answer["ETag"]}
        try:
            for piece in answer["Body"].iter_chunks(READ_PIECE):
                received += piece
            break
        except (botocore.exceptions.HTTPClientError, botocore.exceptions.IncompleteReadError):
            if pause is None:
                raise
            with _count:
                _resumed += 1
            time.sleep(pause)
    return bytes(received)


def _ask(operation: str, **words: Any) -> Any:
    """What object storage answers; one that can't be reached or is busy is asked again while patience lasts.

    All threads of a boto3 client share one budget of retries, 35 refused connections, which an outage of seconds uses
    up; then it raises at once.
    """
    import botocore.exceptions

    deadline = time.monotonic() + _patience
    while True:
        try:
            return getattr(_client(), operation)(**words)
        except (
            botocore.exceptions.ClientError,
            botocore.exceptions.HTTPClientError,
            botocore.exceptions.ConnectionError,
        ) as error:
            if time.monotonic() >= deadline or not _may_pass(error):
                raise
        time.sleep(random.uniform(0.5, 1.5) * PAUSE)


def _may_pass(error: Any) -> bool:
    """Whether an error of boto3 may be gone after a while: no connection, an answer of a busy or broken server."""
    import botocore.exceptions

    if not isinstance(error, botocore.exceptions.ClientError):
        return True
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status == BUSY or status >= 500


@functools.cache
def _client() -> Any:
    import boto3
    from botocore.config import Config as BotoConfig

    return boto3.session.Session().client(
        "s3",
        config=BotoConfig(
            retries={"mode": "standard", "max_attempts": ATTEMPTS},
            connect_timeout=10,
            read_timeout=READ_TIMEOUT,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _split(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{url}: no bucket; write s3://bucket/prefix")
    return bucket, key


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what boto3 and the operating system raise into one line with the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingObjectError(f"{url}: no such file; check the path") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LastingError(
                f"{url}: the disk is full; free space or choose another folder, then run the same command"
            ) from error
        raise UserError(f"{url}: {error.strerror or error}; check the path and its permissions") from error
    except Exception as error:
        explained = _explain_boto(url, error) if is_s3(url) else None
        if explained is None:
            raise
        raise explained from error


def _explain_boto(url: str, error: Exception) -> UserError | None:
    """What an error of boto3 says in one line; None for any other error."""
    import botocore.exceptions

    if isinstance(error, botocore.exceptions.ClientError):
        return _explain_refusal(url, error)
    without_credentials = (
        botocore.exceptions.NoCredentialsError,
        botocore.exceptions.PartialCredentialsError,
        botocore.exceptions.ProfileNotFound,
        botocore.exceptions.TokenRetrievalError,
    )
    if isinstance(error, without_credentials):
        return UserError(
            f"{url}: no AWS credentials ({error}); set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, botocore.exceptions.BotoCoreError):
        return UserError(f"{url}: object storage can't be reached ({error}); check AWS_ENDPOINT_URL and the network")
    return None


def _explain_refusal(url: str, error: Any) -> UserError:
    code = _code(error)
    if code == "NoSuchBucket" or (code in MISSING_KEY and error.operation_name in ("HeadBucket", "ListObjectsV2")):
        return UserError(f"{url}: the bucket {_split(url)[0]!r} does not exist; create it or correct the name")
    if code in MISSING_KEY:
        return MissingObjectError(f"{url}: no such object; check the name")
    if code in REFUSED:
        return LastingError(
            f"{url}: object storage refused the credentials ({code}); check AWS_PROFILE or the keys and the policy"
        )
    return UserError(f"{url}: object storage answered {code or error}; try the same command again")
