/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From the boot protocol to main(), and the ways out.
 *
 * crt0.S calls boot_main() with the address of the start info; it finds RAM and the command line
 * and calls main(argc, argv), where argv[0] is the guest's name. What main() returns is the exit
 * value. A guest normally ends by finish() or fail() instead.
 */
#ifndef BOOT_H
#define BOOT_H

#include "types.h"

#define EXIT_OK 0
#define EXIT_FAILED 1
#define EXIT_USAGE 2
#define EXIT_TRAP 33

/* xen/include/public/arch-x86/hvm/start_info.h, version 1. */
#define HVM_START_MAGIC 0x336ec578
#define HVM_MEMMAP_RAM 1

struct hvm_start_info {
	u32 magic, version, flags, nr_modules;
	u64 modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
	u32 memmap_entries, reserved;
};

struct hvm_memmap_entry {
	u64 addr, size;
	u32 type, reserved;
};

int main(int argc, char **argv);

/* Write `value` to isa-debug-exit; does not return. */
_Noreturn void exit_guest(u32 value);

/* Print "NAME: ok checksum=0x..." or "NAME: FAILED checksum=0x..." and exit with 0 or 1. */
_Noreturn void finish(u64 checksum, bool ok);

/* Print "NAME: FAILED " and the message, exit with 1. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Print "NAME: " and the message, exit with 2: the command line asks for what can't be done. */
_Noreturn void usage(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
