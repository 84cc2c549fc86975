"""Interrupted and resumed equals uninterrupted, bit for bit; and what damaged checkpoints do."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from algos import checkpoint, jobs
from benchmarks import resume
from nestmem.cli import main
from nestmem.errors import UserError

UPDATE, FILE, RENAMED = "trainer:Trainer._optimize", "checkpoint:_write_synced", "checkpoint:sync"
STRUCK = """
import functools, importlib, os, sys
from nestmem.cli import main

place, call, number, *arguments = sys.argv[1:]
module, _, path = place.partition(":")
*path, name = path.split(".")
owner, calls = functools.reduce(getattr, path, importlib.import_module("algos." + module)), []
plain = getattr(owner, name)

def struck(*given, **named):
    calls.append(name)
    if len(calls) == int(call):
        os.kill(os.getpid(), int(number))
    return plain(*given, **named)

setattr(owner, name, struck)
raise SystemExit(main(["train", *arguments]))
"""


def struck(number, place, call, *arguments):
    """`nestmem train` in a process that sends itself a signal at the `call`-th call of a function: no clock decides when."""
    command = [sys.executable, "-c", STRUCK, place, str(call), str(int(number)), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("resume") / "whole"
    assert main(["train", f"run={run}", *resume.OPTIONS]) == 0
    return run


def test_three_kills_and_the_same_bits(whole, tmp_path):
    """In an update, between the two files of a checkpoint, and before the oldest checkpoint makes room for the newest."""
    run, arguments = tmp_path / "killed", [f"run={tmp_path}/killed", *resume.OPTIONS]
    for place, call, kept in ((UPDATE, 13, [5, 10]), (FILE, 4, [10, 15]), (RENAMED, 2, [15, 20, 25])):
        done = struck(signal.SIGKILL, place, call, *arguments)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert sorted((run / "checkpoints").glob("step-*")) == [run / f"checkpoints/step-{n:08d}" for n in kept]
        arguments = [f"resume={run}"]
    assert main(["train", *arguments]) == 0
    assert resume.trace(run) == resume.trace(whole)


def test_ctrl_c_saves_and_the_run_goes_on(whole, tmp_path):
    run = tmp_path / "run"
    done = struck(signal.SIGINT, UPDATE, 13, f"run={run}", *resume.OPTIONS)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert newest(run).name == "step-00000013", "the step is finished first"
    assert main(["train", f"resume={run}"]) == 0
    assert resume.trace(run) == resume.trace(whole)


@pytest.fixture
def copy(whole, tmp_path):
    (tmp_path / "copy").mkdir()
    run = shutil.copytree(whole, tmp_path / "copy" / "run")
    (run / "result.json").unlink()
    return run


def newest(run):
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def test_a_truncated_checkpoint_falls_back_to_the_one_before(whole, copy, capsys):
    tensors = newest(copy) / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    assert main(["train", f"resume={copy}"]) == 0
    assert "damaged" in (out := capsys.readouterr().out.replace("\n", " ")) and "going on from step 35" in out
    assert resume.trace(copy) == resume.trace(whole)


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
