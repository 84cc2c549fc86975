"""Text: resumption bit for bit, what is judged and how, lesions, the readout that learns, drift; and the command line."""

import json
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from algos import build as build_from
from algos import text_judge
from algos.adapt import FastHead
from algos.comparison import summarise
from algos.config import configure
from algos.decoder import Decoder, cross_entropy, layers
from algos.text import TextLearner
from algos.text_drift import Phases
from algos.text_run import Reader
from envs.documents import Document
from envs.text import held
from nestmem import build, detach
from nestmem.cli import main
from nestmem.errors import UserError
from nestmem.probes import Undefined
from tests.runs import Updates, saved_and_loaded

SMALL = ["experiment=tales", "memory=nested_fed", "memory.hidden=6", "memory.key_size=4", "memory.units=4", "algo.width=8",
         "algo.hidden=8", "algo.adapt=true", "algo.chunk=8", "algo.consolidate=0.1", "env.steps=16", "env.longest=40",
         "env.eval_length=64", "env.test_length=96", "trainer.tasks=3", "trainer.chunk=4", "trainer.threads=1",
         "trainer.steps=12", "trainer.eval_every=6", "trainer.checkpoint_every=5"]  # fmt: skip
DRIFT = ["env.data=[generated,generated:1,generated]", "env.phase=4", "env.mixing=2"]


def algo(**changes):
    return OmegaConf.create({"place": "layer", "window": 0, "layers": 1, "hidden": 8, "heads": 2} | changes)


def decoder(memory="lstm", head=None, seed=0, **changes):
    torch.manual_seed(seed)
    return Decoder(256, layers(lambda: build(memory, 8, None), 8, algo(**changes)), head)


def texts(*sizes):
    chance = np.random.default_rng(0)
    return [
        Document(str(i), 0, size, data=chance.integers(0, 256, size).astype(np.uint8)) for i, size in enumerate(sizes)
    ]


LENGTHS = torch.ones(256, dtype=torch.long)


@pytest.mark.parametrize("after", [3, 8])
def test_saved_and_loaded_goes_on_bit_for_bit(after):
    config = configure([*SMALL, *DRIFT])
    want, got, whole, rest = saved_and_loaded(lambda: Updates(build_from.problem(config)), 12, after)
    assert got == want
    assert torch.equal(rest.problem.phases.rows, whole.problem.phases.rows) and len(whole.problem.phases.rows) == 3


def test_bits_per_byte_are_those_of_all_tokens_counted_one_by_one():
    made, documents = decoder(), texts(100, 37)
    record = text_judge.judge(made, documents, LENGTHS, rows=2, steps=16)
    for document, found in zip(documents, record.per_byte()):
        tokens = torch.tensor([256, *document.data.tolist()])
        with torch.no_grad():
            logits, _ = made(tokens[None, :-1], made.initial_state(1))
            bits = cross_entropy(logits, tokens[None, 1:]).mean() / math.log(2)
        assert found == pytest.approx(float(bits), rel=1e-5)
    alone = text_judge.judge(made, documents[1:], LENGTHS, rows=1, steps=8)
    assert alone.per_byte()[0] == pytest.approx(record.per_byte()[1], rel=1e-5)


def test_bins_of_place_double():
    record = text_judge.judge(decoder(), texts(3000, 1500), LENGTHS, rows=2, steps=500)
    assert record.bytes.tolist() == [[1024, 1024, 952], [1024, 476, 0]]
    points = text_judge.by_place(record)
    assert [p[0] for p in points] == [512, 1448, 2896]
    assert points[2][1] == pytest.approx(record.bits[0, 2] / 952)


def test_a_token_counts_for_all_its_bytes():
    lengths = torch.full((256,), 3)
    one, three = (text_judge.judge(decoder(), texts(50), n, rows=1, steps=16) for n in (LENGTHS, lengths))
    assert three.per_byte()[0] == pytest.approx(one.per_byte()[0] / 3)


def test_lesions_empty_what_they_name():
    torch.manual_seed(0)
    made = Decoder(
        256, layers(lambda: build("nested_fed", 8, None, key_size=4, hidden=6), 8, algo()), FastHead(256, 8, 8)
    )
    assert text_judge.lesions(made) == [
        "cleared", "frozen", *(f"cleared: {n}" for n in ("1 LSTM", "2 LinearMemory", "3 Leaky", "4 FastHead"))
    ]  # fmt: skip
    documents = texts(64 * (text_judge.FROZEN + 4))

    def bits(lesion, steps=64):
        return text_judge.judge(made, documents, LENGTHS, rows=1, steps=steps, lesion=lesion).bits.sum()

    intact = bits("")
    assert len({round(bits(lesion), 6) for lesion in ["", *text_judge.lesions(made)]}) == 7
    whole = text_judge.judge(made, documents, LENGTHS, rows=1, steps=64 * 20, lesion="cleared").bits.sum()
    assert whole == pytest.approx(intact), "with one piece there is nothing to clear"


@pytest.mark.parametrize(
    ("changes", "memory"),
    [({"place": "gate", "window": 4}, "gated_deltanet"), ({"place": "context", "window": 8}, "titans"),
     ({"place": "layer", "window": 4, "layers": 2}, "titans"), ({"place": "segments", "window": 8}, "window"),
     ({"place": "layer"}, "nested")],
)  # fmt: skip
def test_wherever_the_memory_sits_no_token_sees_what_comes_after_it(changes, memory):
    made = decoder(memory, **changes).eval()
    tokens = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 20:] = 0
    with torch.no_grad():
        first, second = (made(t, made.initial_state(2))[0] for t in (tokens, other))
        assert torch.equal(first[:, :20], second[:, :20]) and not torch.equal(first[:, 20:], second[:, 20:])
        begun, state = made(tokens[:, :16], made.initial_state(2))
        later, _ = made(tokens[:, 16:], state)
        assert torch.allclose(torch.cat([begun, later], 1), first, atol=1e-5), "the state is carried"


def test_a_new_document_finds_nothing_of_the_last_one():
    made = decoder("nested_fed", head=FastHead(256, 8, 8))
    tokens = torch.randint(0, 256, (2, 16))
    _, state = made(tokens, made.initial_state(2))
    state = made.reset(state, torch.tensor([True, False]))
    both, _ = made(tokens, state)
    fresh, _ = made(tokens, made.initial_state(2))
    assert torch.allclose(both[0], fresh[0], atol=1e-6) and not torch.allclose(both[1], fresh[1], atol=1e-4)


def test_the_head_takes_gradient_steps_on_the_cross_entropy_of_what_has_come():
    torch.manual_seed(0)
    head, readout = FastHead(7, 5, chunk=4).double(), torch.nn.Linear(5, 7).double()
    hidden, tokens = torch.randn(9, 5, dtype=torch.double), torch.randint(0, 7, (9,))
    got, state = head(hidden[None], tokens[None], readout(hidden[None]), head.initial_state(1))
    rate, change, total = head.rate_out.exp() * head.rate_in.exp() / 5**0.5, torch.zeros(7, 5).double(), 0
    said = []
    for t in range(9):
        if t:  # the token that came says how wrong the step before was, with the weights it was said with
            weights = said[-1].clone().requires_grad_()
            loss = cross_entropy(
                (readout(hidden[t - 1]) + weights @ hidden[t - 1])[None, None], tokens[None, t : t + 1]
            )
            total = total + torch.autograd.grad(loss.sum(), weights)[0]
        assert torch.allclose(got[0, t], readout(hidden[t]) + change @ hidden[t])
        said.append(change)
        if (t + 1) % 4 == 0:
            change, total = (head.keep.sigmoid() * change - rate * total).detach(), 0
    assert torch.allclose(state.change[0], change)


def test_the_head_does_the_same_however_its_text_is_cut_and_learns_how_fast_to_learn():
    torch.manual_seed(0)
    head, readout = FastHead(16, 6, chunk=4), torch.nn.Linear(6, 16)
    hidden, tokens = torch.randn(2, 21, 6), torch.randint(0, 16, (2, 21))
    whole, end = head(hidden, tokens, readout(hidden), head.initial_state(2))
    state, parts = head.initial_state(2), []
    for piece in (slice(0, 3), slice(3, 12), slice(12, 21)):
        y, state = head(hidden[:, piece], tokens[:, piece], readout(hidden[:, piece]), state)
        parts.append(y)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-6) and torch.allclose(state.change, end.change, atol=1e-6)
    cross_entropy(whole, tokens).mean().backward()
    assert head.rate_out.grad.abs().sum() > 0 and head.keep.grad != 0


def test_the_head_comes_to_expect_what_a_document_repeats():
    torch.manual_seed(0)
    head, readout = FastHead(16, 6, chunk=4), torch.nn.Linear(6, 16)
    hidden, tokens = torch.randn(1, 1, 6).expand(1, 2000, 6), torch.full((1, 2000), 3)
    with torch.no_grad():
        said = torch.softmax(head(hidden, tokens, readout(hidden), head.initial_state(1))[0], -1)[0, :, 3]
    assert said[-1] > 0.8 > 0.2 > said[0]


def test_slow_weights_take_over_a_share_of_what_documents_that_ended_left():
    head, readout = FastHead(4, 3, beta=0.5), torch.nn.Linear(3, 4)
    before = readout.weight.clone()
    state = head.initial_state(2)._replace(change=torch.stack([torch.ones(4, 3), torch.full((4, 3), 7.0)]))
    head.consolidate(readout, state, torch.tensor([True, False]))
    assert torch.allclose(readout.weight, before + 0.25)


def test_layers_can_have_a_loss_of_their_own_beside_what_adapts():
    documents = texts(40)
    batch = next(next(held(documents, 1, 32, 256))[1])
    made = decoder(head=FastHead(256, 8, 8))
    with torch.no_grad():
        alone = made.answer(made.hidden(batch.tokens, made.initial_state(1).memory)[0])
        own = cross_entropy(alone, batch.targets).mean()
        losses = [TextLearner(made, weight).loss(batch, made.initial_state(1)) for weight in (0.0, 0.5)]
    assert losses[1][0] - losses[0][0] == pytest.approx(0.5 * own) and losses[0][2] == losses[1][2]


def test_phases_measure_forgetting_and_savings():
    phases = Phases(["a", "b"], [0, 1, 0], 100)
    falling = np.linspace(5, 2, 100)
    for visit, curve in enumerate((falling, falling, np.concatenate([np.linspace(3, 2, 34), np.full(66, 2.0)]))):
        for bits in curve:
            phases.saw(visit, bits)
    for row in ([2.0, 5.0], [3.5, 2.0], [1.9, 3.0]):
        phases.asked(row)
    numbers, lines, matrices = phases.report()
    assert numbers["forgetting of a while away"] == 1.5
    assert 2 < numbers["savings on return to a"] < 5
    assert matrices["sources"]["rows"] == ["1 a", "2 b", "3 a"] and len(lines["online"]["points"]) == 100
    assert isinstance(Phases(["a"], [0, 0], 3).savings(0, 1), Undefined)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "run"
    assert main(["train", *SMALL, *DRIFT, "baselines=[lstm]", f"run={folder}"]) == 0
    return folder


def test_a_run_leaves_bits_per_byte_by_place_lesions_and_drift(run):
    result = json.loads((run / "result.json").read_text())
    assert result["unit"] == "bits per byte" and 5 < result["score"] < 9 and result["n"] == 16
    assert {"place", "online"} <= set(result["lines"]) and "sources" in result["matrices"]
    numbers = result["numbers"]
    assert {"bits per byte, memory on", "bits per byte, memory cleared", "bits per byte, memory frozen",
            "forgetting of generated while away"} <= set(numbers)  # fmt: skip
    page = (run / "report" / "report.html").read_text()
    assert "bits_per_byte, bits per byte" in page and "Bits per byte by place" in page
    tags = {json.loads(line)["tag"] for line in (run / "scalars.jsonl").read_text().splitlines()}
    assert {"val/bits_per_byte", "train/bits"} <= tags
    flat = json.loads((run / "baselines" / "lstm" / "result.json").read_text())
    assert 0.9 < flat["parameters"] / result["parameters"] <= 1.001


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("algo.place=nowhere", "expected one of layer, gate, context, segments"),
        ("algo.place=gate", "algo.place=gate needs at least 1 token, got 0"),
        ("env.steps=12", "expected a multiple of 8, the chunk of algo.adapt"),
        ("env.data=[]", "expected at least one source"),
        ("env.vocabulary=100", "expected 0 for bytes, or 257 to 65535 tokens, got 100"),
        ("env.mixing=3", "mixing in 0..phase"),
        ("algo.tied=true", "algo.adapt needs a readout of its own"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(override, says, capsys, tmp_path):
    assert main(["train", *SMALL, override, f"run={tmp_path}/run"]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_byte_pairs_and_hmt_train_from_the_command_line(tmp_path, cache):
    hmt = [
        "memory=window",
        "memory.window=8",
        "memory.heads=2",
        "algo.place=segments",
        "algo.window=8",
        "algo.adapt=false",
    ]
    base = [o for o in SMALL if not o.startswith("memory") and "adapt" not in o]
    assert main(["train", *base, *hmt, "env.vocabulary=300", "trainer.steps=2", f"run={tmp_path}/run"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["numbers"]["bytes judged"] > 8 * 96, "tokens are longer than a byte"


def test_held_pieces_of_one_group_are_in_step():
    groups = [len(list(pieces)) for _, pieces in held(texts(10, 100, 50), 2, 16, 256)]
    assert groups == [4, 7]


def test_a_second_vocabulary_is_noticed(tmp_path):
    problem = build_from.problem(configure(SMALL))
    state = problem.state_dict() | {"vocabulary": torch.ones(3, dtype=torch.uint8)}
    with pytest.raises(UserError, match="the texts have changed"):
        problem.load_state_dict(state)


def test_states_can_be_detached():
    made = decoder("nested_fed", head=FastHead(256, 8, 8))
    _, state = made(torch.zeros(1, 4, dtype=torch.long), made.initial_state(1))
    assert not detach(state).head.hidden.requires_grad


def test_any_file_can_be_judged_by_a_run_and_a_prompt_continued(run, tmp_path, capsys):
    path = tmp_path / "own.txt"
    path.write_bytes(b"Once \xff upon a time. " * 100)
    assert main(["eval", str(run), f"text={path}", "--json", str(tmp_path / "r.json")]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["bytes"] == 2000 and [p[:2] for p in found["points"]] == [[0, 1024], [1024, 2048]]
    assert main(["eval", str(run), f"text={path}", "tokens=100", "--json", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["bytes"] == 100
    capsys.readouterr()
    said = []
    for seed in (0, 0, 1):
        assert main(["generate", str(run), "prompt=Once", f"file={path}", "tokens=20", f"seed={seed}"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2] and all(s.startswith("Once") for s in said)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["eval", "RUN", "text=/nowhere.txt"], "cannot be read as text (No such file or directory)"),
        (["eval", "RUN", "text=EMPTY"], "the file is empty, expected text"),
        (["eval", "RUN", "text=EMPTY", "lines=2"], "eval: no option 'lines'; known: text, tokens"),
        (["eval", "RUN", "ways=3"], "with text=FILE for bits per byte"),
        (["generate", "RUN", "tokens=many"], "tokens: expected a whole number, got 'many'"),
        (["generate", "RUN", "temperature=-1"], "a temperature of at least 0, got 300 and -1"),
        (["generate", "/nowhere"], "not a run of nestmem"),
        (["generate"], "expected the folder of a run first"),
    ],
)
def test_what_a_run_cannot_be_asked(run, tmp_path, capsys, arguments, says):
    (tmp_path / "empty").touch()
    known = {"RUN": str(run), "text=EMPTY": f"text={tmp_path}/empty"}
    assert main([known.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize("place", ["layer", "segments"])
def test_a_reader_says_the_same_token_by_token_as_all_at_once(place):
    made = decoder("gated_deltanet", place=place, window=8).eval()
    tokens = torch.randint(0, 256, (27,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        whole, _ = made(torch.tensor([tokens]), made.initial_state(1))
    reader = Reader(made, steps=16)
    for i, token in enumerate(tokens):
        reader.read([token])
        assert torch.allclose(reader.logits, whole[0, i], atol=1e-4)
    other = Reader(made, steps=16)
    other.read(tokens)
    assert other.sample(5, 0.0, 0) == reader.sample(5, 0.0, 0)


def test_a_comparison_knows_that_fewer_bits_are_better():
    def result(score):
        sizes = {"parameters": 1, "state_bytes": 1, "seconds": 1.0}
        return {"measure": "bits_per_byte", "unit": "bits per byte", "lower_is_better": True, "score": score} | sizes

    found = summarise({"a": [result(2.0 + i / 100) for i in range(5)], "b": [result(2.5 + i / 100) for i in range(5)]})
    assert found.table[0][1] == "bits_per_byte, bits per byte" and found.table[2][2].startswith("1.00")
