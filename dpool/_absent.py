"""What Ray has and dpool has not: what there is instead. Imported only for the sake of the error."""

from __future__ import annotations

_NO_PLACEMENT = "a placement group is known by what dpool.util.placement_group returns, and is passed on like that"
_LIBRARY = "Ray's libraries are not part of dpool, which has tasks, actors, pools and the joblib backend"
_ONE_STREAM = "a task with num_returns='streaming' returns an iterator of futures, of the class dpool.Stream"

_INSTEAD = {
    "timeline": "what ran when is not recorded; take the time in the tasks themselves",
    "client": "programs use the machine that they run on: dpool.init()",
    "ClientBuilder": "programs use the machine that they run on: dpool.init()",
    "java_function": "tasks and actors are Python's",
    "java_actor_class": "tasks and actors are Python's",
    "cross_language": "tasks and actors are Python's",
    "experimental": "see dpool.store_stats and dpool.current_worker for what a program can ask",
    "state": "see dpool.store_stats, dpool.nodes and dpool.available_resources for what a program can ask",
    "cloudpickle": "import cloudpickle itself",
    "ObjectRefGenerator": _ONE_STREAM,
    "DynamicObjectRefGenerator": _ONE_STREAM,
    "get_placement_group": _NO_PLACEMENT,
    "get_current_placement_group": _NO_PLACEMENT,
    "placement_group_table": _NO_PLACEMENT,
    "iter": "a task with num_returns='streaming' returns an iterator of futures",
    "list_named_actors": "dpool.get_actor finds an actor by its name",
    "register_serializer": "use copyreg.pickle or __reduce__, as for pickle",
    "deregister_serializer": "use copyreg.pickle or __reduce__, as for pickle",
    "inspect_serializability": "an argument that cannot be pickled is named by the error",
    **dict.fromkeys(("air", "data", "dag", "llm", "rllib", "serve", "train", "tune", "workflow", "widgets"), _LIBRARY),
}


def error(module: str, name: str) -> AttributeError:
    """What to raise for a name that a module has not."""
    text = f"module {module!r} has no attribute {name!r}"
    return AttributeError(f"{text}: {_INSTEAD[name]}" if name in _INSTEAD else text, name=name)
