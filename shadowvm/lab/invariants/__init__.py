"""The MMU sanitizer: `--check`. See sanitizer.py."""

from .sanitizer import Sanitizer

__all__ = ["Sanitizer"]
