"""Fetch the cluster's software from the bucket with nothing but Python's standard library, and check its hashes.

The object software/SHA256/SHA256SUMS names the files; SHA256 is its own hash and comes from user data, so what is
installed is what `infra/software build` made, whoever can write to the bucket. Until it is uploaded, this waits.
"""

import datetime
import hashlib
import hmac
import json
import os
import pathlib
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

METADATA = "http://169.254.169.254/latest/"
WAIT_SECONDS = 3600
PAUSE_SECONDS = 5


def metadata(path):
    """The text at a path of the instance's metadata, by IMDSv2."""
    ask = urllib.request.Request(
        METADATA + "api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "300"}
    )
    token = urllib.request.urlopen(ask, timeout=10).read().decode()
    ask = urllib.request.Request(METADATA + path, headers={"X-aws-ec2-metadata-token": token})
    return urllib.request.urlopen(ask, timeout=10).read().decode()


def signed(url, region):
    """A GET of an object, signed by AWS's version 4 with the role's credentials."""
    roles = "meta-data/iam/security-credentials/"
    keys = json.loads(metadata(roles + metadata(roles).strip()))
    parts = urllib.parse.urlsplit(url)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    empty = hashlib.sha256(b"").hexdigest()
    headers = {
        "host": parts.netloc,
        "x-amz-content-sha256": empty,
        "x-amz-date": now,
        "x-amz-security-token": keys["Token"],
    }
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = "\n".join(["GET", parts.path, "", lines, names, empty])
    scope = "/".join([now[:8], region, "s3", "aws4_request"])
    text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = ("AWS4" + keys["SecretAccessKey"]).encode()
    for part in [*scope.split("/"), text]:
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    headers["authorization"] = "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={}, Signature={}".format(
        keys["AccessKeyId"], scope, names, key.hex()
    )
    return urllib.request.Request(url, headers=headers)


def fetch(url, region, path, sha256):
    """Write an object to a file; a content of another hash is an error."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(signed(url, region), timeout=60) as body, open(path, "wb") as file:
        while piece := body.read(1 << 20):
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != sha256:
        path.unlink()
        sys.exit(f"{url}: sha256 {digest.hexdigest()}, but {sha256} was built; run `infra/software upload`")


def fetch_patiently(url, region, path, sha256):
    """`fetch`, again and again while the object isn't there yet or the network isn't."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return fetch(url, region, path, sha256)
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"{url}: {error} for {WAIT_SECONDS} s; run `infra/software upload`")
            print(f"{url}: {error}; waiting for `infra/software upload`", flush=True)
            time.sleep(PAUSE_SECONDS)


def main():
    """Fetch the list, then each file that isn't here yet."""
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    region, version = os.environ["AWS_DEFAULT_REGION"], os.environ["PIXELCNN_SOFTWARE_SHA256"]
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3", f"https://s3.{region}.amazonaws.com")
    base = "{}/{}/software/{}/".format(endpoint, os.environ["PIXELCNN_BUCKET"], version)
    fetch_patiently(base + "SHA256SUMS", region, folder / "SHA256SUMS", version)
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        sha256, name = line.split()
        fetch_patiently(base + urllib.parse.quote(name), region, folder / name, sha256)


main()
