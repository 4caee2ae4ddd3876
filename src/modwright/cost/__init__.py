"""What a model costs, part by part: parameters, bytes, multiply-accumulates, cache, speed."""

from modwright.core.formatting import format_number
from modwright.core.paired import PairedRatio
from modwright.cost.counting import Cost, PartCost, cost, count
from modwright.cost.macs import Pass, forward_macs, part_macs
from modwright.cost.memory import activation_bytes, kv_cache_bytes, state_bytes
from modwright.cost.speed import Comparison, Speed, TimingStats, compare_speed, measure_speed
from modwright.cost.tree import Node, Tree, describe, inspect

__all__ = [
    "Comparison",
    "Cost",
    "Node",
    "PairedRatio",
    "PartCost",
    "Pass",
    "Speed",
    "TimingStats",
    "Tree",
    "activation_bytes",
    "compare_speed",
    "cost",
    "count",
    "describe",
    "format_number",
    "forward_macs",
    "inspect",
    "kv_cache_bytes",
    "measure_speed",
    "part_macs",
    "state_bytes",
]
