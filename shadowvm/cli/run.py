"""`shadowvm run`: one guest, to its end.

The guest's output alone goes to stdout, as it comes; everything about the run goes to stderr or into --json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import MachineConfig, parse_poison, parse_quantum, parse_size, parse_smp, parse_time
from ..errors import ConfigError, InvariantViolation, ModelBug, SwapIOError
from ..guests import find_image
from ..params import kvm_params, parse_kvm_params
from .interrupt import interruptible
from .output import BinaryOutput, Output, binary_file, output_file, user_error

if TYPE_CHECKING:
    from ..lab.invariants import Sanitizer
    from ..machine import Machine, Outcome
    from ..trace.recorder import EventDigest
    from ..trace.writer import TraceWriter

EXIT_SWAP = 126
_VARIES = frozenset(("wall_s", "tlb", "events", "events_sha256"))
"""Results that are not those of the run, or differ between equal runs: not in a trace's tail."""
DEFAULT = "tcp:127.0.0.1:1234"
EXIT_VIOLATION = 127
_FLAGS = (
    ("-m", "SIZE", "64M", "guest memory"),
    ("--host-memory", "SIZE", "16M", "memory of the simulated host"),
    ("--swap", "SIZE", None, "size of the swap file, 0 for none (default: as much as -m)"),
    ("--swap-file", "PATH", None, "swap file to create, or a directory for it"),
    ("--swap-latency", "TIME", "0", "virtual time that a read from swap takes, such as 50us"),
    ("-smp", "N", "1", "CPUs, 1 to 16"),
    ("--quantum", "N", None, "instructions that a CPU runs before the next one does; MIN-MAX: random, by --seed"),
    ("-append", "STR", "", "the guest's command line"),
    ("-initrd", "FILES", "", "Multiboot modules: file1 arguments,file2"),
    ("-cpu", "MODEL", "max", "CPU model, with ,+feature and ,-feature"),
    ("-bios", "FILE", None, "firmware to start from the reset vector; shadowvm-fw.bin is bundled"),
    ("-kernel", "FILE", None, "the image, instead of GUEST"),
    ("--load-address", "GPA", None, "load an image without headers there, and enter it in long mode"),
    ("--mmu", "MMU", "shadow", "shadow: shadow page tables; tdp: two-dimensional paging"),
    ("--thp", "WHERE", "never", "transparent huge pages on the host: never, madvise (guest memory), always"),
    ("--serial-input", "FILE", None, "bytes for COM1, which the guest receives as fast as it reads them"),
)
_REPORT_FLAGS = (
    ("--json", "FILE", None, "write the results as JSON; - for stdout"),
    ("--trace", "FILE", None, "write every event, for shadowvm trace; - for ftrace lines on stdout"),
)


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("run", help="run a guest", description=__doc__, allow_abbrev=False)
    add_machine_flags(parser)
    for flag, metavar, default, text in _REPORT_FLAGS:
        parser.add_argument(flag, metavar=metavar, default=default, help=text)
    parser.add_argument("--check", action="store_true", help="verify the MMU's invariants at every transition")
    parser.add_argument("--check-laws", metavar="I1,I2,...", help="--check for these laws alone; help lists them")
    parser.add_argument(
        "--check-every",
        type=_count,
        default=0,
        metavar="N",
        help="look at the state at each N-th exit, and follow only those events that laws named by --check-laws need",
    )
    parser.add_argument("-s", dest="gdb", action="store_const", const=DEFAULT, help=f"wait for gdb at {DEFAULT}")
    parser.add_argument("-gdb", metavar="tcp:ADDRESS:PORT", help="wait for gdb there")
    parser.add_argument("-S", action="store_true", help="with -s or -gdb: do not start (which is always so)")
    parser.set_defaults(main=main)


def add_machine_flags(
    parser: argparse.ArgumentParser, guest: str = "a bundled guest (see shadowvm guests) or an image"
) -> None:
    """The flags that config_from_args() reads, and what GUEST is."""
    parser.add_argument("guest", metavar="GUEST", nargs="?", help=guest)
    for flag, metavar, default, text in _FLAGS:
        parser.add_argument(flag, metavar=metavar, default=default, help=text)
    parser.add_argument("--seed", type=_count, default=0, metavar="N", help="0: tasks in fixed order; others preempt")
    parser.add_argument("--timeout-instructions", type=_count, default=0, metavar="N", help="stop after N instructions")
    parser.add_argument(
        "--kvm-param", action="append", default=[], metavar="NAME=N,...", help="set knobs of KVM's MMU; help lists them"
    )
    parser.add_argument(
        "--poison", action="append", default=[], metavar="GPA@TIME", help="the frame behind GPA fails at that time"
    )
    parser.add_argument("-icount", choices=("on", "off"), default="on", help="count instructions (default: on)")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise argparse.ArgumentTypeError(f"'{text}' is no count")
    return int(text)


def _address(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise ConfigError(f"--load-address: '{text}' is no address")
    return value


def _image_from_args(args: argparse.Namespace) -> tuple[str, str | None]:
    """(name, path) of the image; a firmware can do without one."""
    if args.guest is not None and args.kernel is not None:
        raise ConfigError("give one image: GUEST or -kernel FILE")
    image = args.guest or args.kernel
    if image is not None:
        return find_image(image)
    if args.bios is None:
        raise ConfigError("nothing to run: give GUEST, -kernel FILE or -bios FILE")
    return args.bios, None


def config_from_args(args: argparse.Namespace) -> MachineConfig:
    """The machine that the flags describe."""
    name, image = _image_from_args(args)
    config = MachineConfig(
        image=image,
        name=name,
        memory=parse_size(args.m, "-m"),
        host_memory=parse_size(args.host_memory, "--host-memory"),
        swap=None if args.swap is None else parse_size(args.swap, "--swap"),
        swap_file=args.swap_file,
        swap_latency=parse_time(args.swap_latency, "--swap-latency"),
        append=args.append,
        initrd=args.initrd,
        bios=args.bios,
        load_address=None if args.load_address is None else _address(args.load_address),
        cpu=args.cpu,
        serial_input=args.serial_input,
        seed=args.seed,
        timeout_instructions=args.timeout_instructions,
        icount=args.icount == "on",
        smp=parse_smp(args.smp),
        mmu=args.mmu,
        kvm_params=parse_kvm_params(args.kvm_param),
        poison=tuple(parse_poison(each) for each in args.poison),
        thp=args.thp,
        **({} if args.quantum is None else {"quantum": parse_quantum(args.quantum)}),
    )
    config.validate()
    return config


def main(args: argparse.Namespace) -> int:
    """Run the guest; returns the exit status."""
    if "help" in args.kvm_param:
        print("\n".join(f"{name}={text}" for name, text in kvm_params().items()))
        return 0
    if args.check_laws == "help":
        from ..lab.invariants.laws import help_text  # noqa: PLC0415

        print(help_text())
        return 0
    config = config_from_args(args)
    if args.gdb is not None:
        from .gdbserver import serve  # noqa: PLC0415

        return serve(config, args.gdb)
    check = _check_from_args(args)
    from ..machine import Machine  # noqa: PLC0415 - after the flags are known to be good

    with ExitStack() as stack:
        report = stack.enter_context(output_file(args.json)) if args.json is not None else None
        trace = _trace_output(stack, args.trace)
        announce_compilation()
        started = time.perf_counter()
        machine = Machine(config, _stdout_writer())
        listeners = _attach(stack, machine, check, trace=trace, digest=report is not None)
        outcome, results = _run(machine, listeners, started)
        if listeners.trace is not None:
            listeners.trace.tail = {name: value for name, value in results.items() if name not in _VARIES}
        with user_error("standard output"):
            sys.stdout.flush()
        if report is not None:
            report.write(json.dumps(results, indent=2) + "\n")
            report.flush()
    partial_check = check is not None and not check.hears_everything
    checked = listeners.sanitizer.coverage() if partial_check and listeners.sanitizer is not None else ""
    _summary(machine, outcome, results, checked)
    return outcome.status


def announce_compilation() -> None:
    """On a terminal, say so if the native code is not there yet."""
    from ..cpu.native import cache  # noqa: PLC0415

    if sys.stderr.isatty():
        cache.load(lambda: print("compiling the CPU's native code, once...", file=sys.stderr))


def _run(machine: Machine, listeners: _Listeners, started: float) -> tuple[Outcome, dict[str, Any]]:
    """Run, take stock, take down. A violation, also one that the take-down shows, is the outcome."""
    from ..machine import Outcome, Reason  # noqa: PLC0415

    violations: list[str] = []
    outcome = Outcome(Reason.INTERNAL_ERROR, EXIT_VIOLATION, "invariant violated")
    results: dict[str, Any] = {}
    try:
        try:
            counted = machine.config.icount
            with _progress(machine), nullcontext() if counted else interruptible(machine.vcpus[0].engine.request_stop):
                outcome = machine.run()
            if listeners.sanitizer is not None and outcome.reason is not Reason.SWAP_ERROR:
                listeners.sanitizer.validate()
        finally:
            results = _results(machine, time.perf_counter() - started)
            machine.close()
        if listeners.sanitizer is not None and outcome.reason is not Reason.SWAP_ERROR:
            listeners.sanitizer.finish()
    except InvariantViolation as violation:
        outcome = Outcome(Reason.INTERNAL_ERROR, EXIT_VIOLATION, "invariant violated")
        violations.append(str(violation))
    except ModelBug as bug:
        outcome = Outcome(Reason.INTERNAL_ERROR, EXIT_VIOLATION, f"bug in shadowvm: {bug}")
    except SwapIOError as error:
        outcome = Outcome(Reason.SWAP_ERROR, EXIT_SWAP, str(error))
    results["outcome"] = {"reason": outcome.reason.value, "status": outcome.status, "text": outcome.text}
    results["violations"] = violations
    if listeners.digest is not None:
        results["events"] = listeners.digest.count
        results["events_sha256"] = listeners.digest.hexdigest()
    return outcome, results


class _Listeners:
    digest: EventDigest | None = None
    sanitizer: Sanitizer | None = None
    trace: TraceWriter | None = None


class _Check(NamedTuple):
    """What --check and its kin ask for. laws: None for all."""

    laws: frozenset[str] | None
    every: int

    @property
    def hears_everything(self) -> bool:
        return self.laws is None and not self.every


def _check_from_args(args: argparse.Namespace) -> _Check | None:
    if not (args.check or args.check_laws is not None or args.check_every):
        return None
    from ..lab.invariants.laws import parse_laws  # noqa: PLC0415

    return _Check(None if args.check_laws is None else parse_laws(args.check_laws), args.check_every)


def _trace_output(stack: ExitStack, path: str | None) -> Output | BinaryOutput | None:
    if path is None:
        return None
    return stack.enter_context(output_file(path)) if path == "-" else stack.enter_context(binary_file(path))


def _attach(
    stack: ExitStack, machine: Machine, check: _Check | None, *, trace: Output | BinaryOutput | None, digest: bool
) -> _Listeners:
    listeners = _Listeners()
    if check is None and trace is None:
        return listeners
    from ..lab.invariants import Sanitizer  # noqa: PLC0415
    from ..lab.invariants.laws import BOTH, STATE, laws_seen  # noqa: PLC0415
    from ..trace.ftrace import FtraceWriter  # noqa: PLC0415
    from ..trace.recorder import EventDigest  # noqa: PLC0415
    from ..trace.writer import TraceWriter  # noqa: PLC0415

    if digest and (trace is not None or (check is not None and check.hears_everything)):
        listeners.digest = EventDigest(machine)
        stack.enter_context(listeners.digest.watching())
    if isinstance(trace, BinaryOutput):
        listeners.trace = TraceWriter(machine, trace)
        stack.enter_context(listeners.trace.watching())
    elif trace is not None:
        stack.enter_context(FtraceWriter(machine, trace).watching())
    if check is not None:
        laws = laws_seen(STATE if check.every else BOTH) if check.laws is None else check.laws
        listeners.sanitizer = Sanitizer(machine, laws, every=check.every)
        stack.enter_context(listeners.sanitizer.watching())
    return listeners


def _results(machine: Machine, seconds: float) -> dict[str, Any]:
    """What the run did, in the order of the documented format."""
    from ..kvm import stats  # noqa: PLC0415

    return {
        "guest": machine.config.name,
        "outcome": {},
        "instructions": machine.instructions,
        "virtual_ns": machine.pc.clock.now(),
        "wall_s": round(seconds, 6),
        "seed": machine.config.seed,
        "output_sha256": machine.output_sha256,
        "violations": [],
        "kvm": stats.as_dict(machine.kvm.stat, (vcpu.stat for vcpu in machine.vcpus)),
        "vmstat": machine.host.vmstat.as_dict(),
        "notifier": machine.kvm.notifier.stat.as_dict(),
        "tlb": _tlb_stats(machine),
    }


def _tlb_stats(machine: Machine) -> dict[str, int]:
    """What the CPU's TLB did: statistics, which unlike everything else may differ between equal runs."""
    from ..cpu import mailbox  # noqa: PLC0415

    boxes = [vcpu.engine.box for vcpu in machine.vcpus]
    return {
        "fills": sum(box[mailbox.FILLS] for box in boxes),
        "fetch_fills": sum(box[mailbox.FETCH_FILLS] for box in boxes),
        "flushes": sum(box[mailbox.EPOCH] - 1 for box in boxes),
        "cr3_switches_without_exit": sum(box[mailbox.CR3_HITS] for box in boxes),
    }


def _summary(machine: Machine, outcome: Outcome, results: dict[str, Any], checked: str) -> None:
    kvm, vmstat = results["kvm"], results["vmstat"]
    count = f"{results['instructions']} instructions, " if machine.config.icount else ""
    lines = [
        f"{machine.config.name}: {outcome.reason.value}, status {outcome.status}"
        + (f": {outcome.text}" if outcome.text else ""),
        f"  {count}{results['wall_s']:.2f} s; {kvm['exits']} exits, {kvm['pf_taken']} spte faults, "
        f"{kvm['pf_guest']} guest #PF, {kvm['remote_tlb_flush']} TLB flushes",
        f"  {vmstat['pgfault']} host faults ({vmstat['pgmajfault']} major), "
        f"{vmstat['pswpout']} pages swapped out, {vmstat['pswpin']} in",
        *([f"  checked: {checked}"] if checked else []),
        *results["violations"],
    ]
    print("\n".join(lines), file=sys.stderr)


def _stdout_writer() -> Any:
    buffer = sys.stdout.buffer

    def write(byte: int) -> None:
        with user_error("standard output"):
            buffer.write(bytes((byte,)))
            if byte == 0x0A:
                buffer.flush()

    return write


@contextmanager
def _progress(machine: Machine) -> Iterator[None]:
    """On a terminal, one line on stderr that follows the run."""
    if not sys.stderr.isatty():
        yield
        return
    from tqdm import tqdm  # noqa: PLC0415 - only terminals pay for it

    with tqdm(bar_format="{desc}", file=sys.stderr, leave=False) as line:

        def show() -> None:
            vmstat = machine.host.vmstat
            faults = sum(vcpu.stat.pf_taken for vcpu in machine.vcpus)
            line.set_description_str(
                f"{machine.instructions / 1e6:.0f} M instructions, {faults} faults, "
                f"swap out {vmstat.pswpout} in {vmstat.pswpin}"
            )

        machine.vcpus[0].on_quantum = show
        yield
        machine.vcpus[0].on_quantum = None
