"""A server of moe4's for as long as it is needed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe4.errors import ServeError
from moe4.serve.command import ServeOptions, build_command
from moe4.serve.host import free_port, inspect_host
from moe4.serve.model import read_served_model
from moe4.serve.process import ServerProcess, new_log_path
from moe4.vllm_facts import flags


@contextmanager
def serving(folder: Path, *, tensor_parallel_size: int, trust_remote_code: bool) -> Iterator[tuple[str, str]]:
    """Yield the address and the model's name of a server that runs while inside. Raises ServeError."""
    port = free_port("127.0.0.1", 0)
    options = ServeOptions(
        port=port,
        tensor_parallel_size=tensor_parallel_size,
        extra=(flags.TRUST_REMOTE_CODE,) if trust_remote_code else (),
    )
    command = build_command(read_served_model(folder), inspect_host(), options, dict(os.environ))
    server = ServerProcess(command, new_log_path(port))
    with server.passing_signals():
        if not server.wait_until_ready(lambda: None):
            raise ServeError(f"the server of {folder} was stopped")
        yield command.url, command.model_name
    server.log_path.unlink(missing_ok=True)
