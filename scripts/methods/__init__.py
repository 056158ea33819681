"""The objectives: what a training step computes and minimises. One file each."""

from __future__ import annotations

from scripts.methods.adversarial import Adversarial
from scripts.methods.base import Objective, WeakViews
from scripts.methods.bcp import BCP
from scripts.methods.cnt_b import CnTB
from scripts.methods.cpc_sam import CPCSAM
from scripts.methods.cross_consistency_training import CrossConsistencyTraining
from scripts.methods.cross_pseudo_supervision import CrossPseudoSupervision
from scripts.methods.cross_teaching import CrossTeaching
from scripts.methods.deep_co_training import DeepCoTraining
from scripts.methods.diffrect import DiffRect
from scripts.methods.entropy_minimization import EntropyMinimization
from scripts.methods.fixmatch import FixMatch
from scripts.methods.ict_med import ICTMed
from scripts.methods.interpolation_consistency import InterpolationConsistency
from scripts.methods.mean_teacher import MeanTeacher
from scripts.methods.medfct import MedFCT
from scripts.methods.s4cvnet import S4CVNet
from scripts.methods.scp_net import SCPNet
from scripts.methods.semsim import SemSim
from scripts.methods.semsim_variants import SemSimVariants
from scripts.methods.ss_net import SSNet
from scripts.methods.supervised import Supervised
from scripts.methods.uncertainty_aware_mean_teacher import UncertaintyAwareMeanTeacher
from scripts.methods.unimatch import UniMatch
from scripts.methods.urpc import URPC

__all__ = [
    "BCP",
    "CPCSAM",
    "URPC",
    "Adversarial",
    "CnTB",
    "CrossConsistencyTraining",
    "CrossPseudoSupervision",
    "CrossTeaching",
    "DeepCoTraining",
    "DiffRect",
    "EntropyMinimization",
    "FixMatch",
    "ICTMed",
    "InterpolationConsistency",
    "MeanTeacher",
    "MedFCT",
    "Objective",
    "S4CVNet",
    "SCPNet",
    "SSNet",
    "SemSim",
    "SemSimVariants",
    "Supervised",
    "UncertaintyAwareMeanTeacher",
    "UniMatch",
    "WeakViews",
]
