"""Probes: pure functions on recorded numbers."""

from nestmem.probes.statistics import Interval, mean_interval

__all__ = ["Interval", "mean_interval"]
