"""Checks before an expensive run: what was found on the nodes, judged, each with its remedy."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config import Config
from pipeline.doctor_probe import NodeReport, gigabytes_all_reduced_per_second, probe
from pipeline.errors import UserError
from pipeline.launch import RayWorker, run_on_workers
from pipeline.learner import run_url_of
from pipeline.manifest import Manifest, load_manifest
from pipeline.run_identity import default_tracking_uri
from pipeline.storage import is_s3, join
from pipeline.tasks import on_every_node

Verdict = Literal["pass", "warn", "fail"]

SECONDS_OF_CLOCK_WARN, SECONDS_OF_CLOCK_FAIL = 2.0, 60.0
GIGABYTES_OF_DISK_WARN, GIGABYTES_OF_DISK_FAIL = 20.0, 2.0
MEGABYTES_READ_WARN = 20.0
ALL_REDUCE_WARN = {True: 2.0, False: 0.1}
"""Gigabytes a second below which gradients are slow, with GPUs and without."""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine(config: Config) -> list[Finding]:
    """Every check of a configuration on its cluster.

    Raises:
        UserError: there is no cluster to examine.
    """
    started = time.time()
    reports = on_every_node(config.cluster.num_workers, probe, config, run_url_of(config), default_tracking_uri())
    findings = [
        nodes(reports, config),
        versions(reports),
        clocks(reports, started, time.time()),
        disks(reports, config),
        reading(reports),
        writing(reports),
        one_storage(reports, config),
        tracking(reports),
    ]
    try:
        findings.append(shards(load_manifest(config, config.data.train_split), config))
    except UserError as error:
        findings.append(Finding("shards", "fail", str(error), "run jobs.prepare"))
    if config.cluster.num_workers > 1:
        findings.append(_exchange(config))
    return findings


def nodes(reports: Sequence[NodeReport], config: Config) -> Finding:
    """Whether there are as many GPUs as workers, and on every node the same."""
    cluster, gpus = config.cluster, [gpu for report in reports for gpu in report.gpus]
    least, most = (choose(reports, key=lambda report: len(report.gpus)) for choose in (min, max))
    uneven = f"; {len(least.gpus)} on {least.host}, {len(most.gpus)} on {most.host}"
    kinds = (", ".join(sorted(set(gpus))) or "none") + (uneven if len(least.gpus) < len(most.gpus) else "")
    found = f"{len(reports)} nodes, {len(gpus)} GPUs ({kinds})"
    if cluster.use_gpu and len(gpus) < cluster.num_workers:
        fewer = cluster.min_workers and len(gpus) >= cluster.min_workers
        return Finding(
            "GPUs", "warn" if fewer else "fail", f"{found} for {cluster.num_workers} workers",
            "start more nodes, install the driver, or lower cluster.num_workers",
        )  # fmt: skip
    if len(set(gpus)) > 1:
        return Finding("GPUs", "warn", found, "the slowest sets the pace; use nodes of one kind")
    if gpus and not cluster.use_gpu:
        return Finding("GPUs", "warn", found, "set cluster.use_gpu to use them")
    return Finding("GPUs", "pass", found)


def versions(reports: Sequence[NodeReport]) -> Finding:
    """Whether all nodes have the same Python, torch, CUDA and NCCL."""
    names = reports[0].versions
    told = {name: sorted({report.versions[name] for report in reports}) for name in names}
    found = ", ".join(f"{name} {' and '.join(values)}" for name, values in told.items())
    if any(len(values) > 1 for values in told.values()):
        odd = [report.host for report in reports if report.versions != reports[0].versions]
        return Finding(
            "versions",
            "fail",
            f"{found}; {', '.join(odd)} differ from {reports[0].host}",
            "install the same everywhere",
        )
    return Finding("versions", "pass", found)


def clocks(reports: Sequence[NodeReport], started: float, ended: float) -> Finding:
    """How far a clock is outside of the time in which the nodes were asked."""
    off = max(max(started - report.clock, report.clock - ended, 0.0) for report in reports)
    if off > SECONDS_OF_CLOCK_FAIL:
        return Finding("clock", "fail", f"a node's clock is off by {off:.0f} s", "run chrony or systemd-timesyncd")
    verdict: Verdict = "warn" if off > SECONDS_OF_CLOCK_WARN else "pass"
    return Finding("clock", verdict, f"within {off:.1f} s", "run chrony or systemd-timesyncd" if off else "")


def disks(reports: Sequence[NodeReport], config: Config) -> Finding:
    """Whether each node's disk has room, for the cache of shards if there is one."""
    least = min(reports, key=lambda report: report.free_gigabytes)
    wanted = max(GIGABYTES_OF_DISK_WARN, config.data.cache_gigabytes if config.data.cache_folder else 0.0)
    found = f"{least.free_gigabytes:.1f} GB free on {least.host}, the least"
    if least.free_gigabytes < GIGABYTES_OF_DISK_FAIL:
        return Finding("disk", "fail", found, "free space: Ray's logs and torch's compilations go there")
    if least.free_gigabytes < wanted:
        return Finding("disk", "warn", found, f"{wanted:g} GB are wanted; free space or lower data.cache_gigabytes")
    return Finding("disk", "pass", found)


def reading(reports: Sequence[NodeReport]) -> Finding:
    """Throughput from data.url of the slowest node, while all read at once."""
    for report in reports:
        if report.read_error:
            return Finding("reading", "fail", f"{report.host}: {report.read_error}", "see the message")
    least = min(reports, key=lambda report: report.read_megabytes_per_second)
    found = f"{least.read_megabytes_per_second:.0f} MB/s on {least.host}, the least"
    if least.read_megabytes_per_second < MEGABYTES_READ_WARN:
        return Finding("reading", "warn", found, "set data.cache_folder, or use storage in the nodes' region")
    return Finding("reading", "pass", found)


def writing(reports: Sequence[NodeReport]) -> Finding:
    """Whether every node may write, read and delete below run.url."""
    for report in reports:
        if report.write_error:
            return Finding("writing", "fail", f"{report.host}: {report.write_error}", "allow it, or change run.url")
    return Finding("writing", "pass", "every node writes, reads and deletes below run.url")


def one_storage(reports: Sequence[NodeReport], config: Config) -> Finding:
    """Whether data.url and run.url can be the same on several nodes."""
    local = [url for url in (config.data.url, config.run.url) if not is_s3(url)]
    if local and len({report.host for report in reports}) > 1:
        return Finding(
            "storage", "warn", f"{', '.join(local)}: folders of {len(reports)} nodes",
            "s3://bucket/prefix, unless the folder is shared by all nodes",
        )  # fmt: skip
    return Finding("storage", "pass", "seen by all nodes alike")


def tracking(reports: Sequence[NodeReport]) -> Finding:
    """Whether every node reaches MLflow."""
    for report in reports:
        if report.tracking_error:
            return Finding("MLflow", "fail", f"{report.host}: {report.tracking_error}", "set MLFLOW_TRACKING_URI")
    return Finding("MLflow", "pass", f"{default_tracking_uri()} answers every node")


def shards(manifest: Manifest, config: Config) -> Finding:
    """Whether there are shards enough for an evaluation's workers to read others."""
    workers, count = max(1, config.cluster.num_workers), len(manifest.shards)
    found = f"{count} shards of {manifest.split} for {workers} workers"
    if count < workers:
        remedy = "prepare with fewer data.records_per_shard: an evaluation reads a shard on each worker that shares it"
        return Finding("shards", "warn", found, remedy)
    return Finding("shards", "pass", found)


def table(findings: Sequence[Finding]) -> str:
    """The findings below each other, with the remedy of what isn't well."""
    wide = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        remedy = f"  -> {finding.remedy}" if finding.remedy and finding.verdict != "pass" else ""
        lines.append(f"{finding.verdict}  {finding.check:{wide}}  {finding.found}{remedy}")
    return "\n".join(lines)


def _exchange(config: Config) -> Finding:
    try:
        measured = run_on_workers(config, _all_reduce_on_worker, None, join(run_url_of(config), "doctor"))
    except UserError as error:
        return Finding("all-reduce", "fail", str(error), "name the interface: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME")
    return exchange(measured["gigabytes_per_second"], measured["workers"], config)


def exchange(gigabytes_per_second: float, workers: int, config: Config) -> Finding:
    """How long gradients take over the network."""
    parameters = sum(parameter.numel() for parameter in config.empty_model().parameters())
    seconds = 4 * parameters / 1e9 / gigabytes_per_second
    found = f"{gigabytes_per_second:.2f} GB/s by {workers} workers: {seconds:.3f} s for this model's gradients"
    if gigabytes_per_second < ALL_REDUCE_WARN[config.cluster.use_gpu]:
        return Finding("all-reduce", "warn", found, "nodes of one placement group, or EFA; NCCL_DEBUG=INFO tells why")
    return Finding("all-reduce", "pass", found)


def _all_reduce_on_worker(worker: RayWorker, argument: None) -> dict[str, Any]:
    if worker.world_size == 1:
        raise UserError("only one worker could be started; start more nodes")
    return {"gigabytes_per_second": gigabytes_all_reduced_per_second(worker), "workers": worker.world_size}
