"""Options and how they are read."""

import dataclasses
import inspect

from omegaconf import DictConfig

from algos import algo_schemas, config, env_schemas


def test_options_that_are_also_methods_of_a_config_are_known():
    """config.algo.NAME is the method, not the option; such an option has to be read as config.algo["NAME"]."""
    schemas = {
        c for m in (algo_schemas, env_schemas, config) for _, c in inspect.getmembers(m, dataclasses.is_dataclass)
    }
    names = {field.name for schema in schemas for field in dataclasses.fields(schema)}
    assert {"gamma", "pulls", "checkpoint_every"} < names
    assert names & set(dir(DictConfig)) == {"clear"}
