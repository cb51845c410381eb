"""A mistake that rank 0 meets alone ends all ranks with the same words."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UserError
from pipeline.runtime import Runtime


@contextmanager
def shared_refusal(runtime: Runtime) -> Iterator[None]:
    """Around what rank 0 does alone. Its UserError is raised on all ranks, which would otherwise wait for it in their
    next collective. Called by all ranks together."""
    refusal = [""]
    try:
        yield
    except UserError as error:
        refusal = [str(error)]
    own = refusal[0]
    if runtime.control is not None:
        import torch.distributed as dist

        dist.broadcast_object_list(refusal, src=0, group=runtime.control)
    if refusal[0] or own:
        raise UserError(refusal[0] or own)
