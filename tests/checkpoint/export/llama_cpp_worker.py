"""Runs GGUF files in llama.cpp itself, in a process of its own.

Run as a script: ``llama_cpp_worker.py JOBS``. A job is a JSON mapping with ``file``, ``prompt``
(token ids or text) and ``next``, a token to write after it. The last line of its output is a JSON
list of answers: the most likely tokens after the prompt with their log-probabilities, and how many
tokens the prompt was.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import xllamacpp


def served(file: str) -> Any:
    """A server on one thread, with a cache in float32 as transformers has it."""
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.port = 256, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = params.fit_params = False
    params.verbosity = -1
    return xllamacpp.Server(params)


def run(job: dict[str, Any]) -> dict[str, Any]:
    answer = served(job["file"]).handle_completions(
        {
            "prompt": job["prompt"],
            "max_tokens": 1,
            "logprobs": 8,  # of the model's own predictions
            # What is written must be whole letters: else nothing is told of it.
            "logit_bias": {str(job["next"]): 1000.0},
        }
    )
    (choice,) = answer["choices"]
    return {
        "likely": {
            str(one["id"]): one["logprob"]
            for one in choice["logprobs"]["content"][0]["top_logprobs"]
        },
        "prompt_tokens": answer["usage"]["prompt_tokens"],
    }


if __name__ == "__main__":
    print(json.dumps([run(job) for job in json.loads(sys.argv[1])]))
