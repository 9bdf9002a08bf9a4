"""shadowvm: small x86-64 guests over memory that a simulated Linux host really takes away."""

__version__ = "0.1.0"
