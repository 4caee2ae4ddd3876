"""A live model as typed parts that read and write their weights through one canonical view."""

from modwright.anatomy.anatomy import Anatomy
from modwright.anatomy.families import family_names, register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.parts import Attention, Block, Embedding, Mlp, Norm, Part, Tap
from modwright.anatomy.projection import FactoredProjection, Projection
from modwright.anatomy.selectors import pick_layers, select

__all__ = [
    "Anatomy",
    "Attention",
    "Block",
    "Embedding",
    "FactoredProjection",
    "Family",
    "Mlp",
    "Norm",
    "Part",
    "Projection",
    "Tap",
    "family_names",
    "pick_layers",
    "register_family",
    "select",
]
