"""Native callbacks: written in numba, compiled once, loaded without numba.

build.py (the only user of numba) compiles the callbacks of entry.py to relocatable objects; cache.py keeps them on
disk; loader.py maps them. All state is in the mailbox. Native code must never raise: it may leave by longjmp.
"""
