"""Hydra configuration of the checkout: `train.yaml` and the experiments that override it."""
