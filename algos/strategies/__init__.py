"""What is done against forgetting, by name: `algo=continual algo.strategy=NAME`."""

from algos.strategies.agem import AGem
from algos.strategies.base import Finetune, Joint, Strategy
from algos.strategies.ewc import EWC
from algos.strategies.expandable import Expandable
from algos.strategies.fixed import Means, Remember
from algos.strategies.lwf import LwF
from algos.strategies.replay import Replay
from algos.strategies.si import SI

STRATEGIES: dict[str, type[Strategy]] = {
    "finetune": Finetune,
    "replay": Replay,
    "ewc": EWC,
    "si": SI,
    "lwf": LwF,
    "agem": AGem,
    "expandable": Expandable,
    "joint": Joint,
    "means": Means,
    "memory": Remember,
}
