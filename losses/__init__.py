"""Preference losses as pure functions on log-probabilities: no model, no configuration, no device."""

from losses.cpo import cpo_loss
from losses.dpo import dpo_loss
from losses.ipo import ipo_loss
from losses.logo import logo_loss
from losses.longpo import longpo_loss
from losses.orpo import orpo_loss
from losses.poft import poft_columns_loss, poft_loss
from losses.robust_dpo import robust_dpo_loss
from losses.sft import sft_loss
from losses.simpo import simpo_loss
from losses.solopo import solopo_loss
from losses.types import LossOutput, PairLogps

__all__ = [
    "LossOutput",
    "PairLogps",
    "cpo_loss",
    "dpo_loss",
    "ipo_loss",
    "logo_loss",
    "longpo_loss",
    "orpo_loss",
    "poft_columns_loss",
    "poft_loss",
    "robust_dpo_loss",
    "sft_loss",
    "simpo_loss",
    "solopo_loss",
]
