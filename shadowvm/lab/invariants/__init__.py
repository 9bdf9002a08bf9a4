"""The MMU sanitizer: `--check`. See laws.py and sanitizer.py."""

from .laws import LAWS, Law
from .sanitizer import Sanitizer, validate

__all__ = ["LAWS", "Law", "Sanitizer", "validate"]
