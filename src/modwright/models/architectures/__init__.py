"""One file per architecture, named as its ``model_type``: found by its name, listed nowhere."""
