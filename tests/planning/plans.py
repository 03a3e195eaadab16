"""A plan from overrides, as the tests of planning make it."""

from __future__ import annotations

import hydra

from align.planning.planner import Plan, make_plan


def plan(*words: str) -> Plan:
    """What `align plan WORDS` shows."""
    with hydra.initialize_config_module("hydra_conf", version_base="1.3"):
        return make_plan(hydra.compose("plan", list(words)))
