"""billhook: cut a trained CNN down to the classes and the budget you need, and prove the result."""

__version__ = "0.1.0"
