"""What people are told to do, where more than one part says it. Pure; safe in any thread.

Commands stand in backquotes: those who know how the user found the cluster put them as they are to be typed.
"""

from __future__ import annotations

from wire.address import is_of_one_machine
from wire.config import ClusterConfig


def how_to_start(config: ClusterConfig) -> str:
    """Return what to do while no mediator answers, or the metadata server does not answer it."""
    if _is_of_one_machine(config):
        return "start the cluster with: `quorumfs up`"
    return "start these servers, each on its own machine: see `quorumfs serve --help`"


def how_to_change_quorum(config: ClusterConfig) -> str:
    """Return what to do so that another Qr or Qw, named before, holds."""
    if _is_of_one_machine(config):
        return "`quorumfs down`, change that, `quorumfs up`"
    return "change that on the machine of each mediator, and restart these"


def _is_of_one_machine(config: ClusterConfig) -> bool:
    return all(map(is_of_one_machine, (*config.mediators, config.metaserver_listen)))
