"""What is wrong with an agent's configuration on this machine, found without starting it."""

from collections.abc import Iterator

from ..runtime.checks import address_problem, file_problem, folder_problem, logging_problems, writable_problem
from ..runtime.config import ConfigError, Problem
from .config import AgentConfig
from .images import load_manifests


def agent_problems(config: AgentConfig) -> Iterator[Problem]:
    """Problems of addresses and folders, and of the image manifests."""
    if config.bind is not None and (wrong := address_problem(config.bind.host, config.bind.port)):
        yield Problem(("agent", "bind"), wrong)
    if config.manager_ca is not None and (wrong := file_problem(config.manager_ca)):
        yield Problem(("agent", "manager-ca"), wrong)
    if wrong := writable_problem(config.data_dir, made=True):
        yield Problem(("agent", "data-dir"), wrong)
    if config.images_dir is not None:
        if wrong := folder_problem(config.images_dir):
            yield Problem(("agent", "images-dir"), wrong)
        else:
            try:
                load_manifests(config.images_dir)
            except ConfigError as error:
                yield Problem(("agent", "images-dir"), f": {str(error).removesuffix('.')}")
    yield from logging_problems(config.logging)
