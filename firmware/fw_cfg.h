/* SPDX-License-Identifier: GPL-2.0-or-later */
/* QEMU's firmware configuration device, and what is placed with its help. */
#ifndef FW_CFG_H
#define FW_CFG_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define FW_CFG_SIGNATURE 0x00
#define FW_CFG_RAM_SIZE 0x03
#define FW_CFG_KERNEL_SIZE 0x08
#define FW_CFG_INITRD_ADDR 0x0a
#define FW_CFG_INITRD_SIZE 0x0b
#define FW_CFG_INITRD_DATA 0x12
#define FW_CFG_CMDLINE_SIZE 0x14
#define FW_CFG_CMDLINE_DATA 0x15
#define FW_CFG_SETUP_SIZE 0x17
#define FW_CFG_SETUP_DATA 0x18

#define EBDA 0x9fc00UL /* the extended BIOS data area ends where low memory does */
#define LOW_MEMORY_END 0xa0000UL

void *memset(void *to, int value, u64 size);

/* Read the next bytes of the selected item. Behind its end, and of items that are not there, they are 0. */
void fw_cfg_continue(u64 to, u64 size);
void fw_cfg_read(u16 key, u64 to, u64 size);
u64 fw_cfg_number(u16 key, u64 size);
/* The key of a file in fw_cfg's directory, its size in *size; 0 if there is none of that name. */
u16 fw_cfg_find(const char *name, u32 *size);

/* acpi.c: where the tables go when memory from 0 on ends at `end`; 0 if there is no room for them. */
u64 acpi_tables_base(u64 end);
/* Place them; the root pointer, or 0 if there are none. */
u64 place_acpi_tables(u64 end);

static inline void outb(u16 port, u8 value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 inb(u16 port)
{
	u8 value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

#endif
