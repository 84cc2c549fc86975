"""The command line: what a person types, rightly and wrongly."""

import json
import subprocess
import sys

import pytest

import nestmem
from nestmem.cli import main

TINY = [
    "trainer.steps=4", "trainer.tasks=2", "trainer.eval_every=2", "trainer.eval_tasks=4", "trainer.test_tasks=4",
    "trainer.checkpoint_every=2", "trainer.threads=1", "env.alphabets=3", "env.characters=5", "encoder.channels=[4,4,4,4]",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", f"run={folder}", *TINY]) == 0
    return folder


def test_training_leaves_everything_a_person_looks_for(run):
    assert {"config.yaml", "result.json", "scalars.jsonl", "checkpoints", "tensorboard", "report"} <= {
        p.name for p in run.iterdir()
    }
    result = json.loads((run / "result.json").read_text())
    assert result["low"] <= result["score"] <= result["high"]
    assert len(result["curve"]) == 4, "0, 1, 2, 3 shots"
    assert result["levels"] == ["LSTM", "Episodic", "SlowMLP"]
    flat = json.loads((run / "baselines" / "lstm" / "result.json").read_text())
    assert 0.9 < flat["parameters"] / result["parameters"] <= 1


def test_tensorboard_holds_scalars_images_text_and_hparams_in_one_run(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len([p for p in (run / "tensorboard").rglob("*") if p.is_dir()]) == 0, "no sub-run"
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    assert {"val/adaptation", "val/gates"} <= set(tags["images"])
    assert "config/text_summary" in tags["tensors"]
    assert "_hparams_/session_start_info" in events.summary_metadata
    rows = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
    for tag in ("train/loss", "val/accuracy"):
        twin = [(r["step"], pytest.approx(r["value"], rel=1e-6)) for r in rows if r["tag"] == tag]
        assert [(e.step, e.value) for e in events.Scalars(tag)] == twin


def test_eval_and_report(run, tmp_path, capsys):
    assert (
        main(["eval", str(run), "ways=3", "shots=2", "tasks=4", "split=val", "--json", str(tmp_path / "r.json")]) == 0
    )
    assert len(json.loads((tmp_path / "r.json").read_text())["curve"]) == 3
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")


def test_sequential_learns_classes_one_image_at_a_time(run, omniglot, capsys):
    assert main(["sequential", str(run), "trajectories=2", "classes=10"]) == 0
    out = capsys.readouterr().out
    assert all(head in out for head in ("means", "gaussian", "neighbours", "gradient"))
    result = json.loads((run / "sequential.json").read_text())
    held_out = result["heads"]["means"]["held_out"]["10"]
    assert len(held_out) == 2 and min(held_out) >= 10  # four updates of a four-channel encoder may know nothing
    assert result["heads"]["means"]["bytes_per_class"] < result["heads"]["neighbours"]["bytes_per_class"]
    assert main(["sequential", str(run), "trajectories=2", "classes=10", "heads=stored"]) == 0
    beside = json.loads((run / "sequential.json").read_text())["heads"]
    assert beside.pop("stored")["bytes_per_class"] > beside["neighbours"]["bytes_per_class"]
    assert beside == result["heads"], "heads of an earlier call on the same streams stay"


def test_finished_runs_are_not_trained_again_and_a_second_run_gets_its_own_folder(run, capsys):
    assert main(["train", f"resume={run}"]) == 0
    assert "finished already" in capsys.readouterr().out.replace("\n", "")
    assert main(["train", f"run={run}", "baselines=[]", *TINY]) == 0
    assert (run.parent / "run-2" / "result.json").is_file()


@pytest.mark.parametrize(
    "algo",
    [[], ["memory=nested"], ["algo.adapt=head"], ["algo.learn_rates=true"], ["memory=nested", "baselines=[none]"]],
)
def test_maml_trains_from_the_command_line(tmp_path, algo):
    assert main(["train", "experiment=maml", f"run={tmp_path}/m", *TINY, *algo]) == 0
    result = json.loads((tmp_path / "m" / "result.json").read_text())
    assert result["point"] == "inner step"
    assert len(result["curve"]) == 4


def test_a_target_stops_early(tmp_path):
    assert main(["train", f"run={tmp_path}/t", "baselines=[]", *TINY, "trainer.target=0"]) == 0
    assert json.loads((tmp_path / "t" / "result.json").read_text())["step"] == 2


def test_mixed_precision_and_chunks(tmp_path):
    assert (
        main(
            [
                "train",
                f"run={tmp_path}/a",
                "baselines=[]",
                *TINY,
                "trainer.amp=true",
                "trainer.chunk=1",
                "algo.shifts=1",
            ]
        )
        == 0
    )


@pytest.mark.parametrize("memory", sorted(set(nestmem.memories()) - {"nested"}))
def test_every_memory_is_a_learner(tmp_path, memory):
    assert main(["train", f"memory={memory}", f"run={tmp_path}/m", "baselines=[]", *TINY]) == 0


BAD = [
    (["train", "memory=foo"], ["Could not find 'memory/foo'", "nested"]),
    (["train", "algo=sgd"], ["Could not find 'algo/sgd'", "maml"]),
    (["train", "experiment=none_such"], ["experiment/none_such", "quickstart"]),
    (["train", "trainer.stepz=3"], ["'stepz'", "known: steps"]),
    (["train", "trainer.steps=many"], ["trainer.steps", "'many'", "Integer"]),
    (["train", "memory.slots=2.5"], ["memory.slots", "2.5"]),
    (["train", "env.ways"], ["env.ways", "missing EQUAL"]),
    (["train", "env.ways=5000"], ["env.ways: 5000 ways asked for, but this split has"]),
    (["train", "env.shots=30"], ["env.shots: 30 shots + 3 queries asked for, but a class has 20 drawings"]),
    (["train", "memory.write_when=x"], ["'write_when'"]),
    (["train", "memory.consolidation=dream"], ["consolidation: expected one of replay"]),
    (["train", "memory=none"], ["memory: algo=blackbox needs one"]),
    (["train", "algo=maml"], ["encoder.norm: running statistics cannot be kept in an inner loop"]),
    (["train", "env=folder"], ["env.path"]),
    (["train", "env=folder", "env.path=/no/such/place"], ["env.path: no folder '/no/such/place'"]),
    (["train", "baselines=[perceptron]"], ["baselines: no memory is called 'perceptron'"]),
    (["train", "trainer.device=tpu7"], ["trainer.device"]),
    (["train", "run=/proc/none/run"], ["cannot write to /proc/none/run"]),
    (["train", "--fast"], ["no flag '--fast'"]),
    (["train", "resume=/no/run"], ["/no/run: not a run of nestmem"]),
    (["train", "resume=x", "seed=3"], ["its own configuration, but 'seed=3'"]),
    (["eval"], ["expected the folder of a run"]),
    (["eval", "/no/run"], ["not a run of nestmem"]),
    (["sequential"], ["expected the folder of a run"]),
    (["sequential", "/no/run", "steps=3"], ["no option 'steps'; known: trajectories, classes, order, seed"]),
    (["sequential", "/no/run", "classes=many"], ["classes: expected a whole number, got 'many'"]),
    (["sequential", "/no/run"], ["not a run of nestmem"]),
    (["train", "env=omniglot", "env.split=mine"], ["env.split: expected vinyals or background, got 'mine'"]),
    (["report", "/no/run"], ["no result.json here"]),
    (["data", "fetch"], ["expected list, get or check, got 'fetch'"]),
    (["data", "get", "imagenet"], ["no set 'imagenet'", "omniglot"]),
    (["fly"], ["no verb 'fly'", "train"]),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_gets_one_clear_sentence(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for words in says:
        assert words in error
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize("content", ["", "a: [", "- 1", "env: {}", "\x00"])
def test_a_spoilt_configuration_of_a_run(tmp_path, capsys, content):
    (tmp_path / "config.yaml").write_text(content)
    for verb in (["train", f"resume={tmp_path}"], ["eval", str(tmp_path)]):
        assert main(verb) == 2
        assert f"{tmp_path}: not a run of nestmem" in capsys.readouterr().err


def test_eval_of_what_a_run_cannot_do(run, capsys):
    for override, says in (
        ("ways=9", "trained for 5 ways, got 9"),
        ("way=3", "no option 'way'"),
        ("tasks=-1", "whole number"),
    ):
        assert main(["eval", str(run), override]) == 2
        assert says in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path, capsys):
    assert main(["train", f"run={tmp_path}/n", "baselines=[]", *TINY, "trainer.steps=40", "trainer.lr=1e30"]) == 2
    assert "not finite at step" in (error := capsys.readouterr().err)
    assert "is kept" in error or "no checkpoint was due" in error
    for folder in (tmp_path / "n" / "checkpoints").glob("step-*"):
        from safetensors.torch import load_file

        weights = load_file(folder / "tensors.safetensors")
        assert all(t.isfinite().all() for name, t in weights.items() if name.startswith("learner."))


def test_help_configuration_and_memories(capsys):
    for arguments, words in (
        ([], "nestmem train"),
        (["train", "--help"], "experiment"),
        (["train", "--cfg", "job", "seed=4"], "seed: 4"),
        (["memories"], "nested"),
        (["data", "list"], "glyphs"),
    ):
        assert main(arguments) == 0
        assert words in capsys.readouterr().out


def test_an_experiment_file_for_every_experiment(capsys):
    from pathlib import Path

    import configs
    from algos.config import configure

    folder = Path(configs.__file__).parent
    for path in (folder / "experiment").glob("*.yaml"):
        assert configure([f"experiment={path.stem}"]).trainer.steps > 0
    for path in (folder / "memory").glob("*.yaml"):
        assert configure([f"memory={path.stem}"]).memory.name in nestmem.memories()


def test_importing_the_library_is_light():
    code = (
        "import sys, torch, numpy, safetensors.torch; before = set(sys.modules); import nestmem;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {"hydra", "omegaconf", "learn2learn", "gymnasium", "metaworld", "matplotlib", "scipy", "sqlalchemy"}
    assert "nestmem" in out.split()
    assert not {*heavy, "envs", "algos", "tensorboard"} & set(out.split())


def test_outside_a_checkout_it_says_so(tmp_path):
    code = (
        "import sys; sys.modules.update({'algos': None, 'envs': None, 'configs': None});"
        "from nestmem.cli import main; raise SystemExit(main(['train']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "in a checkout of the repository" in done.stderr
