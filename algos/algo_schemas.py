"""How learning happens: a dataclass for each choice of the group `algo`, with defaults, types and meaning of its options."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    baseline: str = "critic"  # informed: told what the task is; linear: see ppo.linear_values
    clear: str = "task"  # what a memory holds only for an episode lives to the end of the trial; episode: it does not
    infer: float = 0.0  # weight of telling the hidden task from what the memory answers
    credit: str = (
        "reward"  # regret: actions are judged by what they cost one who knows the task, in envs that can say it
    )
    bonus: float = 0.0  # a step that meets the goal is credited with so much more than it is paid, in learning alone
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


ALGOS = (BlackBox, Maml, Prototypes, Oml, Anml, Pretrain, Continual, RL2, MamlRL, Filtering, Decode)
