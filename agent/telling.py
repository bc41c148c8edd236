"""Composition of the part that tells the API server of this node; loaded only where it is switched on."""

import random

from agent import __version__, app
from agent.clock import Clock
from agent.exporters.node_conditions.api import Access, ApiServer
from agent.exporters.node_conditions.exporter import NodeConditions, Pacing
from agent.pipeline.board import Board
from agent.settings import Settings, node_name


def build(settings: Settings, clock: Clock, board: Board) -> NodeConditions:
    """Connect the board with the API server the settings name; nothing is started, and nobody is asked."""
    wanted = settings.node_conditions
    types = tuple(kind for detector in app.DETECTOR_CLASSES for kind in detector.conditions)
    access = Access(wanted.server, wanted.ca_file, wanted.token_file)
    server = ApiServer(access, f"nodediag/{__version__}")
    pacing = Pacing(wanted.heartbeat_seconds, wanted.min_interval_seconds, wanted.events)
    return NodeConditions(board, node_name(settings), types, pacing, clock, server, random.random)
