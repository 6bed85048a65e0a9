"""Ray's names of exceptions, for programs that say `import dpool as ray`; dpool's own stand in `dpool.errors`.

`dpool.get` raises the exception that the task raised, itself. So `RayTaskError`, which Ray raises instead, and
`RayError`, the base of that, are `Exception` here: handlers of the special ones must stand before them.
"""

from __future__ import annotations

from concurrent.futures import CancelledError as TaskCancelledError
from concurrent.futures import TimeoutError as GetTimeoutError

from dpool.errors import ActorDied as ActorDiedError
from dpool.errors import ControlStoreError as RpcError
from dpool.errors import InfeasibleResources as TaskUnschedulableError
from dpool.errors import NodeLost as NodeDiedError
from dpool.errors import ObjectLost as ObjectLostError
from dpool.errors import ObjectStoreFull as ObjectStoreFullError
from dpool.errors import OutOfMemory as OutOfMemoryError
from dpool.errors import PendingCallsLimit as PendingCallsLimitExceeded
from dpool.errors import StartupError as RaySystemError
from dpool.errors import WorkerCrashed as WorkerCrashedError

RayError = RayTaskError = Exception
RayActorError = ActorUnavailableError = ActorDiedError
ActorUnschedulableError = TaskUnschedulableError
ObjectReconstructionFailedError = OwnerDiedError = ReferenceCountingAssertionError = ObjectLostError
OutOfDiskError = ObjectStoreFullError
LocalRayletDiedError = NodeDiedError

__all__ = [
    "ActorDiedError",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "GetTimeoutError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectStoreFullError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "RayActorError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "TaskCancelledError",
    "TaskUnschedulableError",
    "WorkerCrashedError",
]
