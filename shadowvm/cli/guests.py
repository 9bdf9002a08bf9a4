"""`shadowvm guests`: the bundled guests, what they touch and which parameters they take."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..guests import bundled_guests


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("guests", help="list the bundled guests", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print the list."""
    guests = bundled_guests()
    if args.json:
        print(json.dumps([guest._asdict() for guest in guests], indent=2))
        return 0
    for guest in guests:
        print(f"{guest.name:10} {guest.touches:>6}  {guest.description}")
        for key, parameter in guest.parameters.items():
            print(f"{'':19}{key}={parameter['default']}  {parameter['help']}")
    return 0
