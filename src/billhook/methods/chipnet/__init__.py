"""ChipNet (Tiwari et al., ICLR 2021, arXiv 2102.07156): channels are chosen by gates that gradient descent learns."""

from billhook.methods.chipnet.file import SavedGates, read_gates
from billhook.methods.chipnet.gates import Gates, gate_values, gates_of, heaviside, logistic
from billhook.methods.chipnet.learning import GateLearning
from billhook.methods.chipnet.losses import BudgetLoss, crispness, soft_round
from billhook.methods.chipnet.places import Coupling, GateVector, Layout, Place, lay_out
from billhook.methods.chipnet.plan import ChipNetPlan
from billhook.methods.chipnet.schedules import BudgetWeight, ChipNet, Schedule, Stage, gate_rate
from billhook.methods.chipnet.soft_cost import SoftCost
from billhook.methods.chipnet.threshold import Choice, harden

__all__ = [
    "BudgetLoss",
    "BudgetWeight",
    "ChipNet",
    "ChipNetPlan",
    "Choice",
    "Coupling",
    "GateLearning",
    "GateVector",
    "Gates",
    "Layout",
    "Place",
    "SavedGates",
    "Schedule",
    "SoftCost",
    "Stage",
    "crispness",
    "gate_rate",
    "gate_values",
    "gates_of",
    "harden",
    "heaviside",
    "lay_out",
    "logistic",
    "read_gates",
    "soft_round",
]
