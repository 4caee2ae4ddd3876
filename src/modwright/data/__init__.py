"""Datasets by name: text, conversations, images, pairs of images, tokens; and what makes them."""

from modwright.data.dataset import Data, Split, TensorRows, pad_rows, stack_rows
from modwright.data.registry import (
    DatasetInfo,
    data_kind,
    dataset,
    datasets,
    datasets_of,
    make_data,
    resolve_data,
)

__all__ = ["Data", "DatasetInfo", "Split", "TensorRows", "data_kind", "dataset", "datasets"]
__all__ += ["datasets_of", "make_data", "pad_rows", "resolve_data", "stack_rows"]
