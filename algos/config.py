"""What a run may be told: dataclasses that are at once the defaults, the types and the documentation of the options.

Hydra checks every override against them, so a typo or a wrong type is an error before anything runs. The memories' options
come from their constructors (`nestmem.memory.registry.schema`): a new memory has its config by being registered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import nestmem
from nestmem.errors import UserError
from nestmem.memory import registry


@dataclass
class Env:
    """Tasks: `ways` classes, `shots` labelled drawings and `queries` unlabelled ones of each."""

    name: str = MISSING
    ways: int = 5
    shots: int = 1
    queries: int = 5
    augment: float = 0.0  # strength of random affine distortion of training images; 1 is strong
    rotations: bool = True  # the four rotations of a training character are four classes
    test_rotations: bool = False  # and those of a test character


@dataclass
class Glyphs(Env):
    """Built-in procedural characters; nothing to download."""

    name: str = "glyphs"
    alphabets: int = 30  # for training; a third more are made for validation and test
    characters: int = 20  # of an alphabet
    seed: int = 0  # of the glyphs themselves, not of the run


@dataclass
class Omniglot(Env):
    """The real set. split vinyals: the few-shot lists; background: as the sequential benchmark has it, tested on 650 characters
    of the evaluation part, validated on the last 200 of the background part."""

    name: str = "omniglot"
    split: str = "vinyals"
    train: str = "train"  # or trainval: validation accuracy then says nothing
    ways: int = 20


@dataclass
class Folder(Env):
    """A folder of your own: PATH/CLASS/IMAGE, grey images of 28 x 28, at least shots + queries of each class."""

    name: str = "folder"
    path: str = MISSING
    rotations: bool = False


@dataclass
class Tasks:
    """A stream of tasks, for algo=continual; see algos/task_stream.py and envs/drift.py."""

    name: str = "tasks"
    data: str = "glyphs"  # built in; or omniglot, omniglot_background, omniglot_evaluation, mnist (its test set)
    kind: str = "class_incremental"  # domain_incremental, permuted, rotated, coarse_to_fine, omniglot_mnist
    tasks: int = 10
    classes: int = 10  # of a task: characters of an alphabet, or digits
    drawings: int = 0  # of a class; 0: all there are
    seed: int = 0  # of glyphs and permutations, not of the run
    part: str = "test"  # val: other held-out drawings, those of the test being put away; to choose options on
    order: str = "once"  # cycle, returning
    visits: int = 0  # 0: one for each task, two if tasks come back; trainer.steps is divided among them
    mixing: int = 0  # images over which a task fades into the next
    returns: float = 0.5  # order=returning: chance that a visit is to an earlier task
    stay: float = 0.0  # order=returning: chance that the next visit is to the same task
    shuffle: bool = False  # tasks in an order of the run's seed
    boundaries: str = "known"  # hidden: the strategy is not told where tasks end
    held_out: float = 0.25  # of each class's drawings, for the test


@dataclass
class Bandits:
    """Bernoulli bandits, new ones in every trial, for algo=rl2; see envs/bandits.py."""

    name: str = "bandits"
    arms: int = 5
    episodes: int = 10  # pulls of a trial


@dataclass
class Barcodes:
    """Bandits that come back with a barcode, for algo=rl2; see envs/bandits.py."""

    name: str = "barcodes"
    tasks: int = 5  # bandits of a trial
    visits: int = 4  # to each of them
    pulls: int = 10  # of a visit
    arms: int = 10
    bits: int = 10
    shuffled: bool = False  # barcodes say nothing: the control


@dataclass
class MDPs:
    """Random tabular worlds, new ones in every trial, for algo=rl2; see envs/mdps.py."""

    name: str = "mdps"
    states: int = 10
    actions: int = 5
    episodes: int = 10
    horizon: int = 10  # steps of an episode


@dataclass
class MetaWorld:
    """A robot arm and a hidden goal, for algo=rl2; see envs/meta_world.py."""

    name: str = "metaworld"
    benchmark: str = "ML1"  # ML10, ML45
    task: str = "reach-v3"  # of ML1; several, separated by commas, are dealt to the tasks of a trial in turn
    tasks: int = 1  # hidden tasks of a trial
    visits: int = 1  # to each of them, in random order
    episodes: int = 10  # of a visit
    horizon: int = 150  # steps of an episode, at most 500
    goals: int = 50  # of each task, in training as in validation and test
    drift: float = 0.0  # metres that a task moves before it returns, at most, in each direction
    bits: int = 0  # of a barcode that names the task of a visit; 0: nothing does
    seed: int = 0  # of the goals, not of the run
    patience: float = 60.0  # seconds until a simulator counts as hung
    adapt: int = 10  # episodes of a test trial before those that are scored
    scored: int = 3
    test_horizon: int = 500  # steps of an episode of the second test


@dataclass
class Control:
    """Control with hidden dynamics that may drift, for algo=rl2; see envs/control.py."""

    name: str = "control"
    world: str = "pendulum"  # cartpole, inverted_pendulum, cheetah
    episodes: int = 3
    horizon: int = 100  # steps of an episode
    drift: float = 0.0  # of the hidden numbers, each within -1 and 1, from one episode to the next
    patience: float = 60.0  # seconds until a simulator counts as hung


@dataclass
class Streams:
    """Visits of `ways` classes, each shown `shots` times, to contexts that come back. What is seen are features of
    characters out of a frozen encoder: of the run `encoder`, or "" for one trained on the spot. See docs/recurring.md."""

    name: str = MISSING
    images: str = "omniglot"  # or glyphs
    encoder: str = ""
    encoder_steps: int = 500  # of the one trained on the spot
    features: int = 24  # principal directions that are kept
    ways: int = 5
    shots: int = 3
    visits: int = 72  # of a stream in training
    test_visits: int = 72
    session: int = 0  # visits after which all memory but a store is lost, as in a new process (0: never); docs/store.md
    first: int = 6  # visits that are new for certain
    returns: float = 0.5  # probability that a later one is a return
    gaps: list[int] = field(default_factory=lambda: [5, 60])  # of returns, in visits
    cue_size: int = 16  # width of the vector that names a context; 0: nothing does
    cue_noise: float = 0.05


@dataclass
class Bindings(Streams):
    """A context gives its classes labels of its own: arbitrary, and in conflict with other contexts'."""

    name: str = "bindings"
    labels: str = "independent"  # or permutation
    pool: int = 25  # classes of one stream


@dataclass
class Rules(Streams):
    """A context is a rule from looks to labels; every visit shows new classes."""

    name: str = "rules"
    rule: str = "linear"  # or xor
    labels: int = 2
    size: int = 4  # directions that rules depend on
    drift: float = 0.0  # radians per visit
    ways: int = 10
    shots: int = 2


@dataclass
class Timescales:
    """Streams whose hidden variables live for 1, 30 and 1000 steps, for algo=filtering; see envs/timescales.py. A stream is a
    task of the trainer's."""

    name: str = "timescales"
    steps: int = 64  # of an update, through which gradients go
    restart: int = 0  # updates after which memories begin anew, empty; 0: never
    advance: float = 0.8  # chance that a goes on by one
    dwell_b: float = 30.0  # steps for which b stays
    dwell_c: float = 1000.0
    right_b: float = 0.55  # chance that b is seen as it is
    right_c: float = 0.42
    length: int = 4096  # of a stream of the validation or the test
    dropped: int = 1024  # of its steps, before what is slow can be known


@dataclass
class Text:
    """Documents, byte by byte, for algo=text; see envs/documents.py and envs/text.py. trainer.tasks are lanes, trainer.chunk
    documents judged at once."""

    name: str = "text"
    data: list[str] = field(default_factory=lambda: ["generated"])  # also generated:1, books, speeches, wikitext, paths
    vocabulary: int = 0  # 0: bytes; else so many byte pairs, trained on the data
    steps: int = 256  # tokens of an update in each lane, through which gradients go
    longest: int = 0  # tokens after which a document is left in training; it is then entered anywhere (0: read whole)
    phase: int = 0  # updates after which the next of `data` comes, one after another (0: all at once)
    mixing: int = 0  # updates around the end of a phase in which the lanes change one by one
    eval_length: int = 8192  # tokens of a document that a validation reads
    test_length: int = 131072  # and the test (0: all)


@dataclass
class Recall:
    """Streams of tokens that ask for what came before, new ones in every update, for algo=text; see envs/recall.py and
    envs/grammar.py. The score is the accuracy at the last of `lengths`; trainer.tasks are rows."""

    name: str = "recall"
    kind: str = "mqar"  # needle, copy, grammar
    steps: int = 64  # tokens of a stream in training (grammar: symbols)
    pairs: int = 4  # of tokens, or tokens to be copied (grammar: ambiguous letters, and hidden states of each)
    noise: bool = True  # random tokens in between, else blanks (grammar: symbols that cannot follow, else blanks)
    vocabulary: int = 8192  # (grammar: letters)
    gap: list[int] = field(default_factory=lambda: [1, 10])  # grammar: steps between symbols, least and most
    lengths: list[int] = field(
        default_factory=lambda: [1, 4, 16]
    )  # of tests, times `steps` (grammar: times the largest gap)


@dataclass
class Babilong:
    """bAbI facts hidden in books, for algo=text; see envs/babilong.py. Lengths are in words."""

    name: str = "babilong"
    task: int = 1  # 2, 3
    data: list[str] = field(default_factory=lambda: ["books"])  # where the other sentences are from
    stories: str = "babi"  # test stories; made: ours, where bAbI is not at hand
    vocabulary: int = 2048
    steps: list[int] = field(default_factory=lambda: [64, 512])  # shortest and longest text in training
    pieces: int = 4096  # words of a test text that are read at once
    lengths: list[int] = field(default_factory=lambda: [128, 512, 2048, 8192])  # of tests


@dataclass
class Encoder:
    """Convolution blocks; see nestmem.nets.Conv."""

    channels: list[int] = field(default_factory=lambda: [32, 64, 64, 64])
    downsample: str = "stride"
    norm: str = "running"
    flatten: bool = True


@dataclass
class BlackBox:
    """The memory is the learner; see algos/blackbox.py."""

    name: str = "blackbox"
    level_loss: float = 0.2
    shifts: int = 0


@dataclass
class Maml:
    """Gradient steps in the inner loop; see algos/maml.py."""

    name: str = "maml"
    steps: int = 1
    eval_steps: int = 3
    rate: float = 0.4
    second_order: bool = True
    adapt: str = ""
    learn_rates: bool = False


@dataclass
class Prototypes:
    """Class means in feature space; goes with memory=none. See algos/prototypes.py."""

    name: str = "prototypes"


@dataclass
class Oml:
    """Features for online gradient descent of the last layer, from lessons of env.ways classes; goes with memory=none. See
    algos/oml.py."""

    name: str = "oml"
    rate: float = 0.03  # of the inner loop
    remember: int = 15  # images of any class asked for after a lesson, beside env.queries of each of its own
    outputs: int = 1000  # at least as many as there are training classes


@dataclass
class Anml:
    """OML with gated features; see algos/oml.py."""

    name: str = "anml"
    rate: float = 0.1
    remember: int = 64
    outputs: int = 1000
    modulator: list[int] = field(default_factory=lambda: [32, 64, 64, 64])  # channels of the gating network


@dataclass
class Pretrain:
    """Ordinary classification of the training classes, in the same shape; env.ways to env.queries go unused."""

    name: str = "classifier"
    remember: int = 64  # images in a lesson, of any class
    outputs: int = 1000


@dataclass
class Continual:
    """A stream of tasks in one pass, with a strategy against forgetting; see algos/continual.py and algos/strategies."""

    name: str = "continual"
    strategy: str = "finetune"  # replay, ewc, si, lwf, agem, expandable, joint, means, memory
    strength: float | None = None  # lambda of ewc and lwf, c of si; null: the strategy's own
    buffer: int = 200  # images kept by replay, agem and expandable
    mlp: list[int] = field(default_factory=list)  # widths of a fully connected encoder in place of the convolutions
    encoder: str = ""  # a run on other classes whose encoder is the start, in place of random weights
    freeze: bool = False  # the encoder stays as it is (means and memory: always)


@dataclass
class RL2:
    """A memory learns to act, by PPO over whole trials; see algos/rl2.py and algos/ppo.py. trainer.tasks are trials."""

    name: str = "rl2"
    width: int = 64  # of what the memory answers, and of hidden layers
    gamma: float = 0.99
    lam: float = 0.3  # lambda of advantage estimation
    epochs: int = 8
    minibatches: int = 8  # of whole trials, in an epoch
    clip: float = 0.2
    entropy: float = 0.003
    value: float = 0.5  # weight of the value's error
    normalize: bool = True  # advantages to mean 0 and variance 1
    max_kl: float = 0.0  # an update ends with the epoch in which the policy has moved so far; 0: never
    baseline: str = (
        "critic"  # informed: it is told what one who knows the task would get; linear: see ppo.linear_values
    )
    clear: str = "task"  # what a memory holds only for an episode lives to the end of the trial; episode: it does not
    infer: float = (
        0.0  # weight of telling the hidden task from what the memory answers, in envs that have it in numbers
    )
    start: str = ""  # a run of the same shape whose weights are the start


@dataclass
class MamlRL:
    """A policy that gradient steps adapt within a trial; goes with memory=none. See algos/maml_rl.py."""

    name: str = "maml_rl"
    width: int = 64
    inner: int = 1  # gradient steps; a trial is dealt to one more phase than that
    rate: float = 0.3  # of the inner steps
    adapt: str = "all"  # head: ANIL
    second_order: bool = True
    estimator: str = "lvc"  # or dice; see algos/policy_gradient.py
    gamma: float = 0.99
    epochs: int = 3
    clip: float = 0.2


@dataclass
class Filtering:
    """Predict the next tokens of env=timescales, the state carried from update to update; see algos/timescales.py."""

    name: str = "filtering"
    width: int = 32  # of the memory's tokens
    encoder: int = 64  # hidden units; the convolutional encoder goes unused
    decoder: int = 96
    frozen: bool = False  # encoder and memory stay as they were drawn: a control


@dataclass
class Decode:
    """A small decoder around any memory, for env=text; see algos/decoder.py. The convolutional encoder goes unused."""

    name: str = "text"
    width: int = 64
    layers: int = 1
    hidden: int = 128  # units of the network behind each memory, 0: none
    place: str = "layer"  # gate, context (Titans), segments (HMT)
    window: int = 0  # tokens of attention beside the memory; of a segment, for place=context and place=segments
    heads: int = 4  # of that attention
    tied: bool = False  # the readout is the embedding
    orders: list[int] = field(default_factory=list)  # look up what followed the last so many tokens; algos/episodes.py
    bits: int = 15  # log2 of the slots of each order
    adapt: bool = False  # the readout goes on learning within a document; see algos/adapt.py
    chunk: int = 32  # tokens between two of its steps
    level_loss: float = 0.0  # weight of the layers' own cross-entropy, without orders and adapt
    consolidate: float = 0.0  # share of it that the slow weights take over at a document's end


@dataclass
class Trainer:
    steps: int = 400  # updates of the slow weights
    tasks: int = 16  # in one update
    chunk: int = 16  # tasks computed at once; lower it where memory is short, nothing else changes
    lr: float = 2e-3
    warmup: int = 0  # updates until the full rate
    schedule: str = (
        "cosine"  # the rate then falls to zero; or constant, where the stream does not end with the training
    )
    clip: float = 10.0  # largest norm of the gradient
    amp: bool = False  # bfloat16 where it is safe
    device: str = "auto"  # cuda if there is one
    threads: int = 0  # 0: as many as OMP_NUM_THREADS asks for, else as there are cores
    eval_every: int = 100
    eval_tasks: int = 100
    test_tasks: int = 600
    target: float = 101.0  # stop early when validation accuracy, in percent, reaches this
    checkpoint_every: int = 100
    keep: int = 2  # checkpoints


@dataclass
class Train:
    env: Any = MISSING
    algo: Any = MISSING
    memory: Any = MISSING
    encoder: Encoder = field(default_factory=Encoder)
    trainer: Trainer = field(default_factory=Trainer)
    seed: int = 0
    baselines: list[str] = field(default_factory=list)  # flat memories trained alike, at equal parameters
    run: str = "runs/${env.name}-${env.ways}w${env.shots}s-${algo.name}-${memory.name}-s${seed}"


@dataclass
class NoMemory:
    """MAML's plain model, or prototypes: head and encoder only."""

    name: str = "none"


ENVS = (
    Glyphs,
    Omniglot,
    Folder,
    Tasks,
    Bandits,
    Barcodes,
    MDPs,
    MetaWorld,
    Control,
    Bindings,
    Rules,
    Timescales,
    Text,
    Recall,
    Babilong,
)
ALGOS = (BlackBox, Maml, Prototypes, Oml, Anml, Pretrain, Continual, RL2, MamlRL, Filtering, Decode)


def _store() -> None:
    store = ConfigStore.instance()
    store.store("train_schema", Train)
    for env in ENVS:
        store.store(env.name, env, group="env")
    for algo in ALGOS:
        store.store(algo.name, algo, group="algo")
    store.store("none", NoMemory, group="memory")
    for name in nestmem.memories():
        store.store(name, registry.schema(name), group="memory")


_store()


def memory_options(name: str) -> DictConfig:
    """The options of a memory with their defaults; "none" is MAML's plain model."""
    if name != "none" and name not in nestmem.memories():
        raise UserError(f"baselines: no memory is called {name!r}; known: none, {', '.join(nestmem.memories())}")
    return OmegaConf.structured(NoMemory if name == "none" else registry.schema(name))


def configure(overrides: list[str]) -> DictConfig:
    """The configuration of `nestmem train OVERRIDES`; raises UserError with one sentence."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("configs", version_base="1.3"):
            config = compose("train", overrides=overrides)
        OmegaConf.resolve(config)
        missing = OmegaConf.missing_keys(config)
    except (HydraException, OmegaConfBaseException) as error:
        sentence = _sentence(error)
        raise UserError(sentence + _known(sentence)) from None
    if missing:
        raise UserError(f"{sorted(missing)[0]}: a value is needed, none was given")
    OmegaConf.set_readonly(config, True)
    return config


def completed(config: DictConfig) -> DictConfig:
    """A configuration that was stored, with the defaults of options that are newer than it."""
    nodes = {"encoder": OmegaConf.structured(Encoder), "trainer": OmegaConf.structured(Trainer)}
    for group, known in (("env", ENVS), ("algo", ALGOS)):
        if node := next((node for node in known if node.name == config[group].name), None):
            nodes[group] = OmegaConf.structured(node)
    if config.memory.name in ("none", *nestmem.memories()):
        nodes["memory"] = memory_options(config.memory.name)
    defaults = {group: OmegaConf.to_container(node) for group, node in nodes.items()}
    return OmegaConf.create(OmegaConf.to_container(OmegaConf.merge(defaults, config)))


def help_text() -> str:
    """Groups, choices and every option with its default."""
    from pathlib import Path

    import configs

    folder = Path(configs.__file__).parent
    experiments, tuned = (sorted(p.stem for p in (folder / group).glob("*.yaml")) for group in ("experiment", "memory"))
    choices = {
        "experiment": experiments,
        "env": [env.name for env in ENVS],
        "algo": [algo.name for algo in ALGOS],
        "memory": ["none", *nestmem.memories(), *tuned],
    }
    lines = ["nestmem train [GROUP=CHOICE] [OPTION=VALUE]...", "", "Groups:"]
    lines += [f"  {group:11} {', '.join(names)}" for group, names in choices.items()]
    lines += ["", "Options and the values they have in the quick start (algos/config.py says what each means):", ""]
    lines += ["  " + line for line in OmegaConf.to_yaml(configure([])).splitlines()]
    return "\n".join(lines)


def _known(message: str) -> str:
    """For a key that does not exist: the keys that do, beside where it was put."""
    if not (match := re.search(r"Could not override '([^']+)'", message)) or "not in" not in message:
        return ""
    parent = match[1].rpartition(".")[0]
    group = OmegaConf.select(configure([]), parent) if parent else configure([])
    return f"; known: {', '.join(map(str, group))}" if isinstance(group, DictConfig) else ""


def _sentence(error: Exception) -> str:
    """Hydra's and OmegaConf's messages in one line, with the cause where they wrap one."""
    parts = [str(error)]
    if error.__cause__ is not None and str(error.__cause__) not in parts[0]:
        parts.append(str(error.__cause__))
    lines = [line.strip() for line in "\n".join(parts).splitlines()]
    noise = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "Config search path",
        "provider=",
        "To append to your config",
    )
    kept = [line for line in lines if line and not line.startswith(noise)]
    return " ".join(kept)
