"""Opens the two checkpoints ``open_worker.py PLAIN EDITED WITH`` as a user's script would.

With WITH = "modwright", modwright is imported first; else it must not be imported at all. Says in
one line of JSON what came of it.
"""

from __future__ import annotations

import json
import sys


def main(plain: str, edited: str, wanted: str) -> None:
    if wanted == "modwright":
        import modwright  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    ids = torch.arange(6, 18)[None]
    info: dict[str, object] = {}
    for name, place in (("plain", plain), ("edited", edited)):
        try:
            model = AutoModelForCausalLM.from_pretrained(place).eval()
        except Exception as error:
            info[name] = {"error": f"{type(error).__name__}: {error}"}
            continue
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
            settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
            cached, plainly = (
                model.generate(ids, use_cache=use, **settings)[0].tolist() for use in (True, False)
            )
        info[name] = {
            "class": type(model).__name__,
            "logits": logits.tolist(),
            "cached": cached,
            "plainly": plainly,
            "ends": model.generation_config.eos_token_id,
        }
    info["modwright imported"] = "modwright" in sys.modules
    print(json.dumps(info))


if __name__ == "__main__":
    main(*sys.argv[1:])
