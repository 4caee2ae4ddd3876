"""A live model as typed parts that read and write their weights through one canonical view."""

from modwright.anatomy.anatomy import Anatomy
from modwright.anatomy.families import family_names, register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.inputs import Images, Inputs, Tokens
from modwright.anatomy.projection import FactoredProjection, Projection
from modwright.anatomy.selectors import pick_layers, select
from modwright.anatomy.stream import ReadProjection, ResidualStream
from modwright.anatomy.views import (
    Attention,
    Block,
    Embedding,
    Expert,
    Linear,
    MixtureOfExperts,
    Mlp,
    Norm,
    OpaqueMixer,
    OpaqueModule,
    Part,
    PatchEmbedding,
)
from modwright.core.capture import HookPoint

__all__ = ["Anatomy", "Attention", "Block", "Embedding", "Expert", "FactoredProjection", "Family"]
__all__ += ["HookPoint", "Images", "Inputs", "Linear", "MixtureOfExperts", "Mlp", "Norm"]
__all__ += ["OpaqueMixer", "OpaqueModule", "Part", "PatchEmbedding", "Projection"]
__all__ += ["ReadProjection", "ResidualStream", "Tokens", "family_names", "pick_layers"]
__all__ += ["register_family", "select"]
