"""The object store: its books, its memory, its files, how values lie in it. The roles that use it are in `_core`."""
