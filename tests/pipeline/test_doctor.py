import time
from dataclasses import replace

import pytest

from pipeline import doctor
from pipeline.config import Config
from pipeline.doctor_probe import NodeReport, probe
from pipeline.learner import run_url_of
from pipeline.manifest import load_manifest
from pipeline.run_identity import default_tracking_uri
from tests.pipeline.test_train import changed

SOUND = NodeReport(
    host="one", versions={"python": "3.11.9", "torch": "2.13.0"}, gpus=["H100, 580"] * 8, clock=100.0,
    free_gigabytes=500.0, read_megabytes_per_second=900.0, read_error="", write_error="", tracking_error="",
)  # fmt: skip
OTHER = replace(SOUND, host="two")


def with_gpus(config: Config, workers: int, least: int = 0) -> Config:
    return changed(config, cluster={"num_workers": workers, "min_workers": least, "use_gpu": True})


def test_a_sound_cluster_passes(digits: Config) -> None:
    config, reports = with_gpus(digits, 16), [SOUND, OTHER]
    findings = [
        doctor.nodes(reports, config), doctor.versions(reports), doctor.clocks(reports, 99.0, 101.0),
        doctor.disks(reports, config), doctor.reading(reports), doctor.writing(reports), doctor.tracking(reports),
        doctor.exchange(20.0, 16, config),
    ]  # fmt: skip
    assert [finding.verdict for finding in findings] == ["pass"] * len(findings)


@pytest.mark.parametrize(
    ("change", "check", "verdict", "found"),
    [
        ({"gpus": ["H100, 580"] * 7}, "GPUs", "fail", "15 GPUs (H100, 580; 7 on two, 8 on one) for 16 workers"),
        ({"gpus": ["A100, 580"] * 8}, "GPUs", "warn", "A100, 580, H100, 580"),
        ({"versions": {"python": "3.11.9", "torch": "2.12.0"}}, "versions", "fail", "two differ from one"),
        ({"clock": 105.0}, "clock", "warn", "within 4.0 s"),
        ({"clock": -900.0}, "clock", "fail", "off by 999 s"),
        ({"free_gigabytes": 12.0}, "disk", "warn", "12.0 GB free on two"),
        ({"free_gigabytes": 1.0}, "disk", "fail", "1.0 GB free on two"),
        ({"read_megabytes_per_second": 5.0}, "reading", "warn", "5 MB/s on two"),
        ({"read_error": "no such bucket"}, "reading", "fail", "two: no such bucket"),
        ({"write_error": "AccessDenied"}, "writing", "fail", "two: AccessDenied"),
        ({"tracking_error": "refused"}, "MLflow", "fail", "two: refused"),
    ],
)
def test_what_is_not_well_is_named_with_its_remedy(
    change: dict[str, object], check: str, verdict: str, found: str, digits: Config
) -> None:
    config, reports = with_gpus(digits, 16), [SOUND, replace(OTHER, **change)]  # type: ignore[arg-type]
    findings = [
        doctor.nodes(reports, config), doctor.versions(reports), doctor.clocks(reports, 99.0, 101.0),
        doctor.disks(reports, config), doctor.reading(reports), doctor.writing(reports), doctor.tracking(reports),
    ]  # fmt: skip
    ill = [finding for finding in findings if finding.verdict != "pass"]
    assert [(finding.check, finding.verdict) for finding in ill] == [(check, verdict)]
    assert found in ill[0].found
    assert ill[0].remedy
    assert f"{verdict}  {check}" in doctor.table(findings)
    assert f"-> {ill[0].remedy}" in doctor.table(findings)


def test_a_range_of_workers_makes_missing_gpus_a_warning(digits: Config) -> None:
    assert doctor.nodes([SOUND], with_gpus(digits, 16)).verdict == "fail"
    assert doctor.nodes([SOUND], with_gpus(digits, 16, least=8)).verdict == "warn"


def test_few_shards_slow_networks_and_folders_of_one_host_are_warned_of(digits: Config) -> None:
    manifest = load_manifest(digits, "train")
    assert doctor.shards(manifest, changed(digits, cluster={"num_workers": 11})).verdict == "pass"
    assert doctor.shards(manifest, changed(digits, cluster={"num_workers": 12})).verdict == "warn"
    assert doctor.exchange(0.01, 2, digits).verdict == "warn"
    assert [doctor.exchange(speed, 3, digits).verdict for speed in (0.099, 0.1)] == ["warn", "pass"]
    assert doctor.one_storage([SOUND], digits).verdict == "pass"
    assert doctor.one_storage([SOUND, OTHER], digits).verdict == "warn"


def test_the_probe_finds_this_node_well_and_what_it_can_not_reach(digits: Config) -> None:
    report = probe(digits, run_url_of(digits), default_tracking_uri())
    assert (report.read_error, report.write_error, report.tracking_error) == ("", "", "")
    assert report.read_megabytes_per_second > 0
    assert abs(report.clock - time.time()) < 60
    ill = probe(changed(digits, data={"url": "/nowhere"}), "/proc/nowhere", "http://127.0.0.1:9")
    assert "/nowhere/train/manifest.json" in ill.read_error
    assert "/proc/nowhere" in ill.write_error
    assert "can't be reached" in ill.tracking_error


def test_one_process_is_examined_without_a_cluster(digits: Config) -> None:
    findings = doctor.examine(changed(digits, cluster={"num_workers": 0}))
    told = {finding.check: finding.verdict for finding in findings}
    assert "all-reduce" not in told
    assert {told[check] for check in ("versions", "clock", "writing", "storage", "MLflow", "shards")} == {"pass"}
    unprepared = doctor.examine(changed(digits, cluster={"num_workers": 0}, data={"url": "/nowhere"}))
    assert {finding.check for finding in unprepared if finding.verdict == "fail"} == {"reading", "shards"}
