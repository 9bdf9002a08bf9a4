/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From the Multiboot entry to main(), and the ways out. argv[0] is the guest's name; the loader's
 * first word, the name of the image, is left out. What main() returns is the exit value.
 */
#ifndef BOOT_H
#define BOOT_H

#include "types.h"

#define EXIT_OK 0
#define EXIT_FAILED 1
#define EXIT_USAGE 2
#define EXIT_TRAP 33

int main(int argc, char **argv);

/* Write `value` to isa-debug-exit; does not return. */
_Noreturn void exit_guest(u32 value);

/* Print "NAME: ok checksum=0x..." and exit with 0. */
_Noreturn void finish(u64 checksum);

/* Print "NAME: FAILED " and the message, exit with 1. */
_Noreturn void fail(const char *format, ...);

/* Take NAME=0 or NAME=1 from the command line; anything else there ends the guest with 2. */
void parse_flag(int argc, char **argv, const char *name, bool *flag);

/* Fold a value into a checksum. */
u64 checksum_add(u64 checksum, u32 value);

#endif
