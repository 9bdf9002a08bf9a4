/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "boot.h"

#include "cpu.h"
#include "idt.h"
#include "ram.h"
#include "serial.h"

#define DEBUG_EXIT_PORT 0xf4
#define MAX_ARGS 32
#define MAX_CMDLINE 2048

static char cmdline[MAX_CMDLINE];
static char *argv[MAX_ARGS + 1] = { GUEST_NAME };

void boot_main(const struct hvm_start_info *info);

void exit_guest(u32 value)
{
	outl(value, DEBUG_EXIT_PORT);
	for (;;)
		__asm__ volatile("cli; hlt");
}

void finish(u64 checksum, bool ok)
{
	printf(GUEST_NAME ": %s checksum=0x%016lx\n", ok ? "ok" : "FAILED", checksum);
	exit_guest(ok ? EXIT_OK : EXIT_FAILED);
}

void fail(const char *format, ...)
{
	va_list args;

	printf(GUEST_NAME ": FAILED ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	exit_guest(EXIT_FAILED);
}

void usage(const char *format, ...)
{
	va_list args;

	printf(GUEST_NAME ": ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	exit_guest(EXIT_USAGE);
}

/* Split the command line at blanks; returns argc. */
static int split_cmdline(const char *line)
{
	int argc = 1;
	size_t n = 0;

	for (; line && line[n]; n++) {
		if (n == MAX_CMDLINE - 1)
			usage("the command line is longer than %lu bytes", MAX_CMDLINE - 1UL);
		cmdline[n] = line[n];
		if (cmdline[n] == ' ')
			cmdline[n] = 0;
		else if ((n == 0 || !cmdline[n - 1]) && argc == MAX_ARGS)
			usage("more than %d words on the command line", MAX_ARGS - 1);
		else if (n == 0 || !cmdline[n - 1])
			argv[argc++] = cmdline + n;
	}
	return argc;
}

void boot_main(const struct hvm_start_info *info)
{
	int argc;

	serial_init();
	idt_init();
	if (info->magic != HVM_START_MAGIC || info->version < 1)
		usage("no start info of version 1 at %p", (const void *)info);
	ram_init((const struct hvm_memmap_entry *)info->memmap_paddr, info->memmap_entries);
	argc = split_cmdline((const char *)info->cmdline_paddr);
	exit_guest((u32)main(argc, argv));
}
