"""The typed parts of a Transformer. Methods are written once against these, never against modules.

Axes: d hidden_size, H query heads, K key/value heads, D channels of a head, I intermediate_size.
Addresses name parts alike in every family: ``blocks.3.attention.q``, ``blocks.3.mlp.down``,
``blocks.3.attention_norm``, ``final_norm``.
"""

from modwright.anatomy.views.attention import Attention
from modwright.anatomy.views.block import Block, Layout
from modwright.anatomy.views.experts import Expert, MixtureOfExperts
from modwright.anatomy.views.mlp import Mlp
from modwright.anatomy.views.neurons import Neurons
from modwright.anatomy.views.part import (
    Activation,
    Convolution,
    Embedding,
    LayerScale,
    Linear,
    ModulePart,
    Norm,
    OpaqueModule,
    Part,
    PatchEmbedding,
)
from modwright.anatomy.views.sublayer import OpaqueMixer, Scores, Sublayer, component_module

__all__ = ["Activation", "Attention", "Block", "Embedding", "Expert", "LayerScale", "Layout"]
__all__ += [
    "Linear",
    "MixtureOfExperts",
    "Mlp",
    "ModulePart",
    "Neurons",
    "Norm",
    "OpaqueMixer",
    "OpaqueModule",
]
__all__ += ["Convolution", "Part", "PatchEmbedding", "Scores", "Sublayer", "component_module"]
