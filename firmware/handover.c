// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * In 64-bit mode: finds the kernel that fw_cfg announces, makes the boot data of guests/README.md and
 * enters it. The kernel, an ELF64, lies in memory already; of its file fw_cfg has the first 8 KiB.
 * This code is in ROM: it has no writable variables, only the fixed places below.
 */
#include "fw_cfg.h"

#define COM1 0x3f8
#define LSR_THR_EMPTY 0x20
#define POST_PORT 0x80
#define EXIT_PORT 0xf4
#define EXIT_NO_KERNEL 2

#define GDT_COPY 0x500
#define START_INFO 0x6000
#define MODLIST 0x6100
#define MEMMAP 0x7000
#define MEMMAP_MAX 64
#define KERNEL_STACK 0x8ff0
#define SETUP 0x10000
#define SETUP_MAX 0x2000
#define CMDLINE 0x20000
#define CMDLINE_MAX 0x10000

#define BIOS 0xf0000UL
#define HIGH_MEMORY 0x100000UL
#define FLASH 0xfffc0000UL
#define PCI_HOLE 0xc0000000UL
#define ABOVE_4G 0x100000000UL
#define E820_RAM 1
#define E820_RESERVED 2

#define ELF64_MAGIC 0x00010102464c457fUL /* with class 64, little endian, version 1 */
#define ELF_IDENT_MASK 0x00ffffffffffffffUL
#define PT_LOAD 1

/* xen/include/public/arch-x86/hvm/start_info.h, version 1. */
struct start_info {
	u32 magic, version, flags, nr_modules;
	u64 modlist, cmdline, rsdp, memmap;
	u32 memmap_entries, reserved;
};
struct modlist_entry {
	u64 paddr, size, cmdline, reserved;
};
struct memmap_entry {
	u64 addr, size;
	u32 type, reserved;
};

struct elf_header {
	u64 ident[2];
	u16 type, machine;
	u32 version;
	u64 entry, phoff, shoff;
	u32 flags;
	u16 ehsize, phentsize, phnum;
};
struct program_header {
	u32 type, flags;
	u64 offset, vaddr, paddr, filesz, memsz, align;
};

struct e820_entry {
	u64 addr, size;
	u32 type;
} __attribute__((packed));
extern const u64 gdt[];
_Noreturn void enter_kernel(u64 entry, u64 start_info, u64 stack);
_Noreturn void hand_over(void);

static void put(const char *text)
{
	for (; *text; text++) {
		while (!(inb(COM1 + 5) & LSR_THR_EMPTY))
			;
		outb(COM1, (u8)*text);
	}
}

static void put_hex(u64 value)
{
	char digits[19];
	int at = sizeof(digits) - 1;

	digits[at] = 0;
	do {
		digits[--at] = "0123456789abcdef"[value & 15];
		value >>= 4;
	} while (value);
	digits[--at] = 'x';
	digits[--at] = '0';
	put(digits + at);
}

static _Noreturn void stop(const char *why)
{
	outb(POST_PORT, 0xe8);
	put("fw: ");
	put(why);
	put("\r\n");
	__asm__ volatile("outl %0, %1" : : "a"(EXIT_NO_KERNEL), "Nd"((u16)EXIT_PORT));
	for (;;)
		__asm__ volatile("cli; hlt");
}

static struct memmap_entry *add(struct memmap_entry *to, u64 addr, u64 end, u32 type)
{
	if (addr >= end)
		return to;
	to->addr = addr;
	to->size = end - addr;
	to->type = type;
	to->reserved = 0;
	return to + 1;
}

/*
 * RAM at 0 is cut at the EBDA, where the root pointer lies, and at the hole below 1 MiB, where ROMs and
 * this image are; its end holds the ACPI tables.
 */
static struct memmap_entry *add_ram(struct memmap_entry *to, u64 addr, u64 end)
{
	u64 tables = acpi_tables_base(end);

	if (addr)
		return add(to, addr, end, E820_RAM);
	to = add(to, 0, EBDA, E820_RAM);
	to = add(to, EBDA, LOW_MEMORY_END, E820_RESERVED);
	to = add(to, BIOS, HIGH_MEMORY, E820_RESERVED);
	to = add(to, HIGH_MEMORY, tables ? tables : end, E820_RAM);
	to = add(to, tables, tables ? end : 0, E820_RESERVED);
	return add(to, FLASH, ABOVE_4G, E820_RESERVED);
}

/* RAM from 0 on. */
static u64 low_memory(void)
{
	u64 ram = fw_cfg_number(FW_CFG_RAM_SIZE, 8);

	return ram < PCI_HOLE ? ram : PCI_HOLE;
}

/* The number of entries written at MEMMAP. */
static u32 memory_map(void)
{
	struct memmap_entry *const first = (struct memmap_entry *)MEMMAP, *to = first;
	struct e820_entry entry;
	u32 size = 0;
	u16 key = fw_cfg_find("etc/e820", &size);
	u64 ram = fw_cfg_number(FW_CFG_RAM_SIZE, 8), low = low_memory();

	if (key) {
		fw_cfg_read(key, 0, 0);
		for (u32 i = size / sizeof(entry); i && to - first < MEMMAP_MAX; i--) {
			fw_cfg_continue((u64)&entry, sizeof(entry));
			if (entry.type == E820_RAM)
				to = add_ram(to, entry.addr, entry.addr + entry.size);
			else
				to = add(to, entry.addr, entry.addr + entry.size, entry.type);
		}
	} else {
		to = add_ram(to, 0, low);
		to = add(to, ABOVE_4G, ABOVE_4G + (ram - low), E820_RAM);
	}
	return (u32)(to - first);
}

/* The kernel's entry, physical. */
static u64 find_kernel(void)
{
	const struct elf_header *elf = (const struct elf_header *)SETUP;
	const struct program_header *phdr;
	u64 setup = fw_cfg_number(FW_CFG_SETUP_SIZE, 4);

	if (fw_cfg_number(FW_CFG_SIGNATURE, 4) != 0x554d4551) /* "QEMU" */
		stop("no fw_cfg, so no kernel");
	if (!fw_cfg_number(FW_CFG_KERNEL_SIZE, 4))
		stop("no kernel");
	if (setup > SETUP_MAX)
		setup = SETUP_MAX;
	fw_cfg_read(FW_CFG_SETUP_DATA, SETUP, setup);
	if (setup < sizeof(*elf) || (elf->ident[0] & ELF_IDENT_MASK) != ELF64_MAGIC)
		stop("the kernel is not an ELF64");
	if (elf->phoff > setup || elf->phnum * sizeof(*phdr) > setup - elf->phoff)
		stop("the kernel's program headers are not in the first 8 KiB of its file");
	phdr = (const struct program_header *)(SETUP + elf->phoff);
	for (u32 i = 0; i < elf->phnum; i++)
		if (phdr[i].type == PT_LOAD && elf->entry - phdr[i].vaddr < phdr[i].memsz)
			return elf->entry - phdr[i].vaddr + phdr[i].paddr;
	stop("the kernel's entry is in no segment");
}

static u32 load_initrd(void)
{
	struct modlist_entry *module = (struct modlist_entry *)MODLIST;

	module->size = fw_cfg_number(FW_CFG_INITRD_SIZE, 4);
	module->paddr = fw_cfg_number(FW_CFG_INITRD_ADDR, 4);
	module->cmdline = module->reserved = 0;
	if (!module->size)
		return 0;
	fw_cfg_read(FW_CFG_INITRD_DATA, module->paddr, module->size);
	return 1;
}

_Noreturn void hand_over(void)
{
	struct start_info *info = (struct start_info *)START_INFO;
	u64 entry, cmdline;

	outb(POST_PORT, 0x07);
	put("fw: CS is 64-bit: long mode\r\n");
	entry = find_kernel();
	cmdline = fw_cfg_number(FW_CFG_CMDLINE_SIZE, 4);
	if (cmdline >= CMDLINE_MAX)
		stop("the command line is too long");
	fw_cfg_read(FW_CFG_CMDLINE_DATA, CMDLINE, cmdline);
	*(u8 *)(CMDLINE + cmdline) = 0;
	*info = (struct start_info){
		.magic = 0x336ec578,
		.version = 1,
		.nr_modules = load_initrd(),
		.modlist = MODLIST,
		.cmdline = CMDLINE,
		.memmap = MEMMAP,
	};
	info->memmap_entries = memory_map();
	info->rsdp = place_acpi_tables(low_memory());
	for (int i = 0; i < 3; i++)
		((u64 *)GDT_COPY)[i] = gdt[i];
	outb(POST_PORT, 0x08);
	put("fw: kernel at ");
	put_hex(entry);
	put("\r\n");
	enter_kernel(entry, START_INFO, KERNEL_STACK);
}
