"""Where experience comes from: a dataclass for each choice of the group `env`, with defaults, types and meaning of its options."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


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
    task: str = "reach-v3"  # of ML1; several, joined by +, are dealt to the tasks of a trial in turn
    tasks: int = 1  # hidden tasks of a trial
    visits: int = 1  # to each of them, in rounds of random order
    episodes: int = 10  # of a visit
    horizon: int = 150  # steps of an episode, at most 500
    goals: int = 50  # of each task, in training as in validation and test
    mixed: bool = False  # training pairs where things lie with the goal of another training task, anew in every trial
    drift: float = 0.0  # metres that a task moves before it returns, at most, in each direction
    bits: int = 0  # of a barcode that names the task of a visit; 0: nothing does
    seed: int = 0  # of the goals, not of the run
    patience: float = 60.0  # seconds until a simulator counts as hung
    adapt: int = 10  # episodes of a test trial before those that are scored
    scored: int = 3
    test_horizon: int = 500  # steps of an episode of the second test


@dataclass
class Reach:
    """Meta-World's hidden goal for a point instead of an arm, for algo=rl2; see envs/reach.py."""

    name: str = "reach"
    tasks: int = 1  # hidden goals of a trial
    visits: int = 1  # to each of them, in rounds of random order
    episodes: int = 5  # of a visit
    horizon: int = 100  # steps of an episode
    goals: int = 50  # in training as in validation and test
    mixed: bool = True  # places of what lies about and goals of training tasks are paired anew in every trial
    bits: int = 0  # of a barcode that names the task of a visit; 0: nothing does
    seed: int = 0  # of the goals, not of the run
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
    # Of tests, times `steps` (grammar: times the largest gap).
    lengths: list[int] = field(default_factory=lambda: [1, 4, 16])


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


ENVS = (
    Glyphs,
    Omniglot,
    Folder,
    Tasks,
    Bandits,
    Barcodes,
    MDPs,
    MetaWorld,
    Reach,
    Control,
    Bindings,
    Rules,
    Timescales,
    Text,
    Recall,
    Babilong,
)
