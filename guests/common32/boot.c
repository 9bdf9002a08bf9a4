/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "boot.h"

#include "console.h"
#include "cpu.h"
#include "idt.h"

#define BOOT_MAGIC 0x2badb002
#define INFO_CMDLINE (1u << 2)
#define DEBUG_EXIT_PORT 0xf4
#define MAX_ARGS 16
#define FNV_PRIME 0x100000001b3ull

struct multiboot_info {
	u32 flags, mem_lower, mem_upper, boot_device, cmdline;
};

_Noreturn void boot_main(u32 magic, const struct multiboot_info *info);

_Noreturn void exit_guest(u32 value)
{
	outl(value, DEBUG_EXIT_PORT);
	for (;;)
		__asm__ volatile("cli; hlt");
}

_Noreturn void finish(u64 checksum)
{
	printf(GUEST_NAME ": ok checksum=0x%L\n", checksum);
	exit_guest(EXIT_OK);
}

_Noreturn void fail(const char *format, ...)
{
	va_list args;

	printf(GUEST_NAME ": FAILED ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	exit_guest(EXIT_FAILED);
}

static bool is_flag(const char *word, const char *name)
{
	while (*name && *word == *name)
		word++, name++;
	return !*name && word[0] == '=' && (word[1] == '0' || word[1] == '1') && !word[2];
}

void parse_flag(int argc, char **argv, const char *name, bool *flag)
{
	for (int i = 1; i < argc; i++) {
		if (!is_flag(argv[i], name)) {
			printf(GUEST_NAME ": unknown parameter: %s\n", argv[i]);
			exit_guest(EXIT_USAGE);
		}
		for (const char *c = argv[i]; *c; c++)
			*flag = *c == '1';
	}
}

u64 checksum_add(u64 checksum, u32 value)
{
	return (checksum ^ value) * FNV_PRIME + (checksum >> 47);
}

_Noreturn void boot_main(u32 magic, const struct multiboot_info *info)
{
	static char *argv[MAX_ARGS + 1] = { GUEST_NAME };
	int argc = 0;
	bool word = false;

	console_init();
	idt_init();
	if (magic != BOOT_MAGIC)
		fail("entered with EAX 0x%x", magic);
	for (char *c = info->flags & INFO_CMDLINE ? (char *)info->cmdline : ""; *c; c++) {
		if (*c == ' ')
			*c = 0;
		else if (!word && argc < MAX_ARGS)
			argv[argc++] = c;
		word = *c;
	}
	argv[0] = GUEST_NAME;
	exit_guest((u32)main(argc ? argc : 1, argv));
}
