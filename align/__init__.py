"""Long-context preference optimisation: LOGO, LongPO and LongWriter on one shared-prefix forward."""

__version__ = "0.1.0"
