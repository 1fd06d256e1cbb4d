import json
from pathlib import Path

import pytest

from pipeline.command_line import parse, run_job
from pipeline.config import Config, flatten
from pipeline.errors import UserError
from pipeline.presets import PRESETS
from pipeline.submitted_job import JOB_VARIABLE


def refuse(config: Config) -> None:
    raise UserError("data.url /nowhere: no manifest; prepare it")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("digist", "unknown preset 'digist': did you mean digits? choose one of digits, "),
        ("digits --run.nam a", "unknown key '--run.nam': did you mean --run.name?"),
        ("digits --model.num-layers two", "--model.num-layers: invalid literal for int() with base 10: 'two'"),
        ("digits --model.num-layers 0", "model.num_layers 0: Input should be greater than or equal to 1"),
        ("digits --model.kernel-size 4", "model.kernel_size 4 is even: choose an odd size"),
        ("cifar10 --model.num-filters 10", "model.num_filters 10 is not a multiple of data.channels 3"),
        ("digits --sample.png-files=maybe", "unknown key 'maybe'"),
        ("digits --data.resize cubic", "invalid choice 'cubic' for argument '--data.resize'"),
        ("digits --data.url s3://", "s3://: no bucket; write s3://bucket/prefix"),
        ("digits --data.url=", "data.url '': String should have at least 1 character"),
        ("digits --run.url=", "run.url '': String should have at least 1 character"),
        ("digits --tracking.experiment=", "tracking.experiment '': String should have at least 1 character"),
        ("digits --run.name=", "run.name '' names no folder of its own: give a name without empty parts, . and .."),
        ("digits --run.name ..", "run.name '..' names no folder of its own"),
        ("digits --run.name a/../b", "run.name 'a/../b' names no folder of its own"),
        ("digits --search.name .", "search.name '.' names no folder of its own"),
        ("digits --data.val-split=", "data.val_split '' names no folder of its own"),
        ("digits --train.seed=-1", "train.seed -1: Input should be greater than or equal to 0"),
        ("digits --train.seed 4294967296", "train.seed 4294967296: Input should be less than 4294967296"),
        ("digits --search.seed=-1", "search.seed -1: Input should be greater than or equal to 0"),
        ("digits --sample.seed 9223372036854775808", "sample.seed 9223372036854775808: Input should be less than"),
        ("digits --cluster.stall-seconds inf", "cluster.stall_seconds inf: Input should be less than 1000000000"),
        ("digits --search.budget inf", "search.budget inf: Input should be less than 1000000000000000"),
        ("digits --data.url gs://bucket", "gs://bucket: only s3://bucket/prefix and local folders"),
        ("digits", "data.url /nowhere: no manifest; prepare it"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy_and_a_status(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job("jobs.test", "Test.", refuse, words.split()) == 1
    told = capsys.readouterr()
    assert told.err.startswith(f"error: {message}")
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_stack_trace_is_shown_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELCNN_TRACEBACK", "1")
    with pytest.raises(UserError):
        run_job("jobs.test", "Test.", refuse, ["digits"])


def test_overrides_reach_the_job_with_either_spelling() -> None:
    taken: list[Config] = []
    words = ["digits", "--model.num-layers", "3", "--model.num_filters", "48", "--cluster.num-workers", "0"]
    assert run_job("jobs.test", "Test.", taken.append, words) == 0
    assert (taken[0].model.num_layers, taken[0].model.num_filters, taken[0].cluster.num_workers) == (3, 48, 0)
    assert taken[0].data.url.startswith("/")


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ("--train.horizontal-flips", (True, True)),
        ("--train.horizontal-flips True", (True, True)),
        ("--train.horizontal_flips=true --sample.png-files=False", (True, False)),
        ("--sample.png-files false", (False, False)),
        ("--sample.no-png-files", (False, False)),
        ("--sample.png-files --run.name true", (False, True)),
    ],
)
def test_a_switch_takes_a_word_as_other_keys_do_or_none(words: str, taken: tuple[bool, bool]) -> None:
    configs: list[Config] = []
    assert run_job("jobs.test", "Test.", configs.append, ["digits", *words.split()]) == 0
    assert (configs[0].train.horizontal_flips, configs[0].sample.png_files) == taken
    assert configs[0].run.name == ("true" if "--run.name true" in words else "digits")


def test_relative_paths_are_those_of_the_folder_where_the_job_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers stand in folders of their own."""
    monkeypatch.chdir(tmp_path)
    taken: list[Config] = []
    names = ("data.url", "data.cache_folder", "run.url", "sample.url", "sample.mse_run", "sample.vectors")
    words = ["portraits", "--model.embedding-run", "here", *(word for name in names for word in (f"--{name}", "here"))]
    assert run_job("jobs.test", "Test.", taken.append, words) == 0
    flat = flatten(taken[0])
    assert {flat[name] for name in (*names, "model.embedding_run")} == {str(tmp_path / "here")}


def test_a_submitted_job_reads_what_came_with_it_and_writes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    (tmp_path / "mine.json").write_text(PRESETS["digits"].config.model_dump_json())
    (tmp_path / "h.npy").touch()
    taken: list[Config] = []
    words = ["--config", "mine.json", "--sample.vectors", "h.npy"]
    assert run_job("jobs.test", "Test.", taken.append, words) == 0
    assert taken[0].sample.vectors == str(tmp_path / "h.npy")
    assert taken[0].run.url == str(tmp_path / "home/pixelcnn-ray/runs")


def test_dry_run_prints_configuration_size_and_cost_and_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job("jobs.test", "Test.", refuse, ["imagenet32", "--dry-run"]) == 0
    told = capsys.readouterr().out
    configuration = json.JSONDecoder().raw_decode(told)[0]
    assert Config.model_validate(configuration).model == PRESETS["imagenet32"].config.model
    assert "training: 200,000 steps of 128 = 25,600,000 images" in told
    assert "parameters: 113," in told
    assert "GFLOP forward" in told
    assert "dollars" in told


@pytest.mark.parametrize("preset", PRESETS)
def test_help_explains_every_field_of_every_preset(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("jobs.test", "Test.", [preset, "--help"])
    assert stopped.value.code == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for section in ("model", "data", "train", "run", "cluster", "evaluate", "sample", "tracking"):
        for name, field in type(getattr(PRESETS[preset].config, section)).model_fields.items():
            assert f"--{section}.{name.replace('_', '-')}" in told
            assert field.description, f"{section}.{name} says nothing"


def test_every_preset_names_its_data_version_cost_and_expectation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("jobs.test", "Test.", ["--help"])
    told = capsys.readouterr().out
    for name, preset in PRESETS.items():
        assert preset.config.preset == name
        assert preset.summary in told
        assert all((preset.data_version, preset.cost, preset.expect))


def test_imagenet_presets_are_the_papers() -> None:
    for name in ("imagenet32", "imagenet64"):
        config = PRESETS[name].config
        assert (config.model.num_layers, config.model.num_filters, config.model.kernel_size) == (20, 384, 5)
        assert (config.train.batch_size, config.train.steps) == (128, 200_000)


def test_a_file_stands_in_for_a_preset_and_is_overridden(tmp_path: Path) -> None:
    taken: list[Config] = []
    file = tmp_path / "best.json"
    file.write_text(PRESETS["cifar10-small"].config.model_dump_json())
    words = ["--config", str(file), "--train.steps", "7"]
    assert run_job("jobs.test", "Test.", taken.append, words) == 0
    assert taken[0].model == PRESETS["cifar10-small"].config.model
    assert (taken[0].train.steps, taken[0].preset) == (7, "cifar10-small")


@pytest.mark.parametrize("content", [None, "no JSON", '{"preset": "absent"}', '{"unknown": 1}'])
def test_a_file_that_is_no_configuration_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    file = tmp_path / "best.json"
    if content is not None:
        file.write_text(content)
    assert run_job("jobs.test", "Test.", refuse, ["--config", str(file)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
