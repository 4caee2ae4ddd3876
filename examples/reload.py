"""Loads an edited checkpoint as any user would, in a process of its own, and lets it write."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import modwright  # noqa: F401 (registers the edited architectures with transformers)

directory = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(directory)
tokenizer = AutoTokenizer.from_pretrained(directory)
question = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(
    question, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
written = model.generate(**inputs, max_new_tokens=40, do_sample=False)
answer = tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(f"{type(model).__name__}, {model.num_parameters():,} parameters")
print(answer.strip())
