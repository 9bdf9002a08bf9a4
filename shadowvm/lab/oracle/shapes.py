"""What an operation of the oracle looks like: a list of a name and numbers, as it stands in a saved case.

SLOT is a number of layout.py, or that and 1 << 16 for the slot of system management mode; the rest is at _SHAPES.
"""

from __future__ import annotations

from . import layout as at

Operation = list[int | str]

BITS = ("wp", "pse", "smep", "smap", "pke", "nxe")
_SHAPES = {
    "access": "isiiii",  # CPU KIND VA VALUE CPL AC: one instruction of layout.KINDS
    "cross": "isiiii",  # the same across the end of the page of VA
    "invlpg": "ii",  # CPU VA
    "cr3": "ii",  # CPU VALUE
    "bit": "isi",  # CPU NAME VALUE: MOV to CR0 or CR4, or WRMSR EFER, that changes one control bit
    "pkru": "ii",  # CPU VALUE
    "mode": "isi",  # CPU MODE CR3
    "smm": "ii",  # CPU ON: into system management mode, or out of it
    "outside": "ii",  # AT VALUE: the VMM stores a word
    "dontneed": "i",  # HPAGE, as of the following
    "pageout": "i",
    "readonly": "i",
    "writable": "i",
    "unmap": "i",
    "age": "i",
    "map": "",
    "collapse": "i",  # SLOT: the host makes small pages a huge one
    "reprotect": "i",  # SLOT: all of it becomes read-only, and writable again
    "recover": "",  # the worker of nx_huge_pages
    "hog": "ii",  # FIRST PAGES: host memory gets short
    "slot": "i",  # BASE: the third slot moves, or is deleted (-1) or created
    "rom": "i",  # the same, and it is read-only
    "log": "ii",  # SLOT ON
    "harvest": "i",  # SLOT
    "clear": "iii",  # SLOT FIRST PAGES
    "check": "",  # all memory is compared
    "during": "sisi",  # POINT NTH ACT NUMBER: amid the next one another thread does one of RACES
    "amid": "siisiiii",  # POINT NTH CPU KIND VA VALUE CPL AC: amid the next access another CPU does this store
}
"""By name: which arguments are numbers (i) and which are words (s)."""
RACES = ("pageout", "age", "flap", "hog", "harvest", "dontneed", "collapse")
"""What the guest does not see, or, of the last, sees as soon as it has gone on."""
_MAX_PASSES = 64


def problem_with(operation: object, cpus: int) -> str:
    """What is wrong with something that ought to be an operation, or ""."""
    if not isinstance(operation, list) or not operation or operation[0] not in _SHAPES:
        return "no operation"
    name, *arguments = operation
    shape = _SHAPES[name]
    kinds = "".join("i" if type(each) is int else "s" if type(each) is str else "?" for each in arguments)
    if kinds != shape:
        return f"{name} takes other arguments"
    if any(type(each) is int and not -1 <= each < 1 << 64 for each in arguments):
        return f"{name}: a number is out of range"
    return _problem_with_values(name, arguments, cpus)


def _problem_with_values(name: str, arguments: list[int | str], cpus: int) -> str:
    first = arguments[0] if arguments else 0
    if name == "amid":
        point, nth, *access = arguments
        if point not in at.POINTS_WITHOUT_LOCKS or not 1 <= int(nth) <= _MAX_PASSES:
            return f"amid: there is no '{point}', or {nth} is out of range"
        if str(access[1])[0] != "w":
            return f"amid: {access[1]} is no store"
        name, arguments, first = "access", access, access[0]
    if name in ("access", "cross", "invlpg", "cr3", "bit", "pkru", "mode", "smm") and not 0 <= int(first) < cpus:
        return f"{name}: there is no CPU {first}"
    if name == "during":
        return _problem_with_race(*arguments)
    words = {"access": at.ACCESS_KINDS, "cross": at.CROSSING_KINDS, "bit": BITS, "mode": at.MODES}
    if name in words and arguments[1] not in words[name]:
        return f"{name}: there is no '{arguments[1]}'"
    if name in ("access", "cross") and (arguments[4] not in (0, 3) or arguments[5] not in (0, 1)):
        return f"{name}: CPL is 0 or 3, AC 0 or 1"
    if name in ("cr3", "mode") and int(arguments[-1]) >> 12 not in at.ROOTS:
        return f"{name}: no root is at {int(arguments[-1]):#x}"
    if name in ("dontneed", "pageout", "readonly", "writable", "unmap", "age") and not _is_page(int(first)):
        return f"{name}: there is no page {int(first):#x}"
    if name == "outside" and not _is_page(int(first) >> 9):
        return f"outside: there is no word {int(first):#x}"
    if name in ("slot", "rom") and first not in (-1, *at.MOVING_BASES):
        return f"{name}: base {int(first):#x} is none of those that a slot may have"
    if name in ("log", "harvest", "clear", "collapse", "reprotect") and not _is_slot(int(first)):
        return f"{name}: there is no slot {first}"
    return "hog: too many pages" if name == "hog" and int(arguments[1]) > 1024 else ""


def _problem_with_race(point: object, nth: object, act: object, number: object) -> str:
    if point not in at.POINTS or act not in RACES:
        return f"during: there is no '{point}' or no '{act}'"
    if not isinstance(nth, int) or not 1 <= nth <= _MAX_PASSES:
        return f"during: {nth} is out of range"
    known = isinstance(number, int) and (
        _is_slot(number) if act in ("harvest", "collapse") else act == "hog" or _is_page(number)
    )
    return "" if known else f"during: there is no {number} to {act}"


def _is_slot(slot: int) -> bool:
    return slot & ~at.IN_SMM in at.SLOT_PAGES


def _is_page(hpage: int) -> bool:
    return 0 <= hpage & 0xFFFF < at.SLOT_PAGES.get(hpage >> 16, 0)
