"""Strategies: recipes that are valid, and values that are hardly."""

from __future__ import annotations

from hypothesis import strategies as st

__all__ = ["JUNK", "RECIPES", "SOMETHING"]

SIZES = st.integers(1, 500)
DATA = st.fixed_dictionaries(
    {},
    optional={
        "data": st.sampled_from(["lee", "words.txt", "datasets:x#y"]),
        "windows": SIZES,
        "length": st.integers(2, 999),
        "seed": st.none() | st.integers(0, 9),
        "bos": st.booleans(),
    },
)
LLM_DROP = st.fixed_dictionaries(
    {"method": st.just("llm_drop"), "n": st.integers(0, 40)},
    optional={
        "target": st.sampled_from(["attention", "mlp", "block", "joint"]),
        "mode": st.sampled_from(["one_shot", "iterative"]),
        "drop_norm": st.booleans(),
        "lists": st.none() | st.just("config.json"),
        "calibration": DATA,
    },
)
MODEGPT = st.fixed_dictionaries(
    {"method": st.just("modegpt")},
    optional={
        "sparsity": st.floats(0, 0.7),
        "pairs": st.lists(
            st.sampled_from(["mlp", "query_key", "value_output"]), min_size=1, unique=True
        ),
        "allocation": st.sampled_from(["global", "uniform"]),
        "round_to": st.integers(1, 64),
        "calibration": DATA,
    },
)
WORDS = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1)
RECIPES = st.fixed_dictionaries(
    {"model": WORDS, "steps": st.lists(LLM_DROP | MODEGPT, min_size=1, max_size=3)},
    optional={
        "title": WORDS,
        "dtype": st.none() | st.sampled_from(["float32", "bfloat16"]),
        "seed": st.integers(-5, 5),
        "threads": st.none() | SIZES,
        "max_shard_size": st.sampled_from(["5GB", "200MB", "1.5 GB", "900kB"]),
        "calibration": DATA,
        "evaluate": st.fixed_dictionaries(
            {},
            optional={
                "perplexity": st.none() | st.fixed_dictionaries({}, optional={"windows": SIZES}),
                "agreement": st.booleans() | st.fixed_dictionaries({}, optional={"windows": SIZES}),
                "harness": st.none()
                | st.fixed_dictionaries(
                    {"tasks": st.lists(WORDS, min_size=1, max_size=2)},
                    optional={
                        "include_path": st.none() | WORDS,
                        "limit": st.none() | SIZES,
                        "num_fewshot": st.none() | st.integers(0, 5),
                        "batch_size": SIZES,
                    },
                ),
                "speed": st.none(),
                "generate": st.fixed_dictionaries({}, optional={"chat": st.none() | st.booleans()}),
            },
        ),
    },
)

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SOMETHING = st.dictionaries(
    st.sampled_from(["model", "steps", "evaluate", "calibration", "dtype", "x"]),
    JUNK
    | st.lists(st.dictionaries(st.sampled_from(["method", "n", "calibration", "options"]), JUNK))
    | st.lists(
        st.fixed_dictionaries({"method": st.just("modegpt"), "pairs": JUNK, "epsilon": JUNK})
    ),
)
