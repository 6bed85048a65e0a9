"""Real faults done to a real dpool.Executor: what dies, stops, fills up or lies, and what must hold after it."""
