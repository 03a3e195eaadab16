"""Preference losses as pure functions on log-probabilities: no model, no configuration, no device."""

from losses.alphapo import alphapo_loss
from losses.aot import aot_loss, aot_unpaired_loss
from losses.apo_down import apo_down_loss
from losses.apo_zero import apo_zero_loss
from losses.bco import bco_loss
from losses.cpo import cpo_loss
from losses.discopop import discopop_loss
from losses.dpo import dpo_loss
from losses.dpo_norm import dpo_norm_loss
from losses.dpop import dpop_loss
from losses.dr_dpo import dr_dpo_loss
from losses.exo_pair import exo_pair_loss
from losses.f_dpo import f_dpo_loss
from losses.hinge_dpo import hinge_dpo_loss
from losses.ipo import ipo_loss
from losses.kto import apo_zero_unpaired_loss, kto_loss
from losses.ld_dpo import ld_dpo_loss
from losses.lm import lm_loss
from losses.logo import logo_loss
from losses.longpo import longpo_loss
from losses.margin import row_margin_loss
from losses.mirror_descent import mirror_descent_loss
from losses.mixture import mixture_loss
from losses.nca_pair import nca_pair_loss
from losses.orpo import orpo_loss
from losses.poft import poft_columns_loss, poft_loss
from losses.robust_dpo import robust_dpo_loss
from losses.row_weights import row_weighted_loss
from losses.sft import sft_loss
from losses.simpo import simpo_loss
from losses.slic import slic_loss
from losses.solopo import solopo_loss
from losses.sppo_hard import sppo_hard_loss
from losses.states import LossState, RewardShift
from losses.types import LossOutput, PairLogps
from losses.weighted_sft import full_ranking_loss, weighted_sft_loss
from losses.wpo import wpo_loss

__all__ = [
    "LossOutput",
    "LossState",
    "PairLogps",
    "RewardShift",
    "alphapo_loss",
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "apo_zero_unpaired_loss",
    "bco_loss",
    "cpo_loss",
    "discopop_loss",
    "dpo_loss",
    "dpo_norm_loss",
    "dpop_loss",
    "dr_dpo_loss",
    "exo_pair_loss",
    "f_dpo_loss",
    "full_ranking_loss",
    "hinge_dpo_loss",
    "ipo_loss",
    "kto_loss",
    "ld_dpo_loss",
    "lm_loss",
    "logo_loss",
    "longpo_loss",
    "mirror_descent_loss",
    "mixture_loss",
    "nca_pair_loss",
    "orpo_loss",
    "poft_columns_loss",
    "poft_loss",
    "robust_dpo_loss",
    "row_margin_loss",
    "row_weighted_loss",
    "sft_loss",
    "simpo_loss",
    "slic_loss",
    "solopo_loss",
    "sppo_hard_loss",
    "weighted_sft_loss",
    "wpo_loss",
]
