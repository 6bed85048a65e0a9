"""`dpool run`: an unmodified program whose process pools are served by dpool.

```
 cli ─► command: options ─► serving.install: what is replaced, when its module is imported ──► hooks
             │                     └─ the same in every worker (`_core.context.here.at_start`)
             ├─► inheriting: what the program changes in its own modules, for its workers
             ├─► report: counts, printed at the end
             └─► program.run: the script, module, directory or zip file becomes `__main__`
```

A program that uses no pool imports nothing of the runtime, and none of its names are replaced but those of modules
that it imports.
"""

from __future__ import annotations
