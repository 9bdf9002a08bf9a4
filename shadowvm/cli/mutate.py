"""`shadowvm mutate`: put a fixed bug of KVM back, and see the laws of --check find it.

Each is run twice, with the bug and without. The exit status is 0 if every bug was found under its law and every run
without it is clean.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from typing import Any

from .output import output_file

EXIT_MISSED = 1


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("mutate", help="find bugs that KVM once had", description=__doc__, allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="name, commit, law and what it breaks, for each mutation")
    what.add_argument("--run", metavar="NAME,...|all", help="run these mutations")
    parser.add_argument("--json", metavar="FILE", help="with --run: write the results as JSON; - for stdout")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """List or run; returns the exit status."""
    from ..lab.mutate import gallery  # noqa: PLC0415 - the parser of every command is built without it
    from ..lab.mutate.mutation import run_mutation  # noqa: PLC0415

    if args.list:
        print(gallery.list_text())
        return 0
    chosen = gallery.find_mutations(args.run)
    results = []
    with output_file(args.json) if args.json is not None else nullcontext() as report:
        for mutation in chosen:
            results.append(run_mutation(mutation))
            print(gallery.result_text(results[-1]), file=sys.stderr if args.json == "-" else sys.stdout, flush=True)
        if report is not None:
            report.write(json.dumps(gallery.as_dict(results), indent=2) + "\n")
            report.flush()
    return 0 if all(result.found and result.clean_without for result in results) else EXIT_MISSED
