"""The object store (not used by the executor yet)."""
