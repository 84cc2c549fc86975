"""Interrupted and resumed equals uninterrupted, bit for bit; and what damaged checkpoints do."""

import json
import random
import shutil
import signal
import time

import pytest
from omegaconf import OmegaConf

from algos import checkpoint, jobs
from benchmarks import resume
from nestmem.cli import main
from nestmem.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return resume.uninterrupted(tmp_path_factory.mktemp("resume"))


def test_two_kills_and_the_same_bits(whole, tmp_path):
    run, went_on_from = resume.interrupted(tmp_path, "killed", whole[1], random.Random(time.time_ns()), kills=2)
    assert resume.trace(run) == resume.trace(whole[0]), f"went on from {went_on_from}"


def test_ctrl_c_saves_and_the_run_goes_on(whole, tmp_path, capfd):
    process = resume.start(f"run={tmp_path}/run", *resume.OPTIONS)
    resume.wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(signal.SIGINT)
    assert process.wait() in (0, 130)  # 0 if it was done before the signal came
    assert "Traceback" not in capfd.readouterr().err
    assert main(["train", f"resume={tmp_path}/run"]) == 0
    assert resume.trace(tmp_path / "run") == resume.trace(whole[0])


@pytest.fixture
def copy(whole, tmp_path):
    (tmp_path / "copy").mkdir()
    run = shutil.copytree(whole[0], tmp_path / "copy" / "run")
    (run / "result.json").unlink()
    return run


def newest(run):
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def test_a_truncated_checkpoint_falls_back_to_the_one_before(whole, copy, capsys):
    tensors = newest(copy) / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    assert main(["train", f"resume={copy}"]) == 0
    assert "damaged" in (out := capsys.readouterr().out.replace("\n", " ")) and "going on from step 35" in out
    assert resume.trace(copy) == resume.trace(whole[0])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "meta.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "meta.json").write_text('{"format": 99}'), "not a checkpoint of nestmem"),
        (lambda folder: (folder / "tensors.safetensors").unlink(), "damaged"),
    ],
)
def test_when_none_is_left_it_says_so(copy, spoil, says):
    for folder in (copy / "checkpoints").glob("step-*"):
        spoil(folder)
    with pytest.raises(UserError, match=f"no whole checkpoint is left.*{says}"):
        checkpoint.read(copy)


def test_a_checkpoint_of_another_configuration_names_the_difference(copy, capsys):
    meta = newest(copy) / "meta.json"
    content = json.loads(meta.read_text())
    content["config"]["memory"]["hidden"] = 13
    meta.write_text(json.dumps(content))
    assert main(["train", f"resume={copy}"]) == 2
    assert "another configuration (memory.hidden was 13, is 64)" in capsys.readouterr().err


def test_an_option_that_is_newer_than_the_run_has_its_default(copy):
    stored, meta = OmegaConf.load(copy / "config.yaml"), newest(copy) / "meta.json"
    content = json.loads(meta.read_text())
    for config in (stored, content["config"]):
        del config["memory"]["threshold"], config["trainer"]["clip"]
    OmegaConf.save(stored, copy / "config.yaml")
    meta.write_text(json.dumps(content))
    assert jobs.stored_config(copy).memory.threshold == 0.95 and jobs.stored_config(copy).trainer.clip == 10.0
    assert main(["train", f"resume={copy}"]) == 0


def test_a_disk_that_refuses_keeps_the_previous_checkpoint(copy, capsys):
    """A file-size limit stands in for a full disk: the write fails half way, for real."""
    import resource
    import subprocess
    import sys

    shutil.rmtree(newest(copy))
    before = checkpoint.read(copy)[0].step
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        f"from nestmem.cli import main; raise SystemExit(main(['train', 'resume={copy}']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert checkpoint.read(copy)[0].step == before
    assert not list((copy / "checkpoints").glob(".writing*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
