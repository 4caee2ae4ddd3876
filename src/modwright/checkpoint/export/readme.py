"""The page in an export's directory: how it is opened, how it compared, what it weighs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from modwright.core.formatting import format_bytes

if TYPE_CHECKING:
    from modwright.checkpoint.export.comparing import ParityReport
    from modwright.checkpoint.export.export_job import ExportJob
    from modwright.checkpoint.export.target import Target

__all__ = ["readme"]


def readme(
    work: ExportJob,
    target: Target,
    compared: ParityReport,
    made: Mapping[str, int],
    checkpoint_bytes: int,
) -> str:
    """Markdown, with the lines that open the files first.

    Args:
        work: what was exported.
        target: to what.
        compared: how the files computed.
        made: file -> bytes.
        checkpoint_bytes: what the model's checkpoint stores.
    """
    rows = "\n".join(f"| {name} | {format_bytes(size)} |" for name, size in made.items())
    return f"""\
---
tags: [modwright, {target.name}]
---

# {work.name}, exported to {target.name}

```python
{target.opening(work)}
```

Written by `modwright export` and opened again before it was put here: {compared}.

| file | size |
| :--- | ---: |
{rows}

The model's own checkpoint stores {format_bytes(checkpoint_bytes)}.
"""
