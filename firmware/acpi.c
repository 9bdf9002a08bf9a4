// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * ACPI tables come from the VMM as files of fw_cfg and a script, etc/table-loader, that says where each
 * goes, which pointers in them are to be moved and which checksums are then to be made right.
 */
#include "fw_cfg.h"

#define SCRIPT 0x12000
#define SCRIPT_MAX 0xe000
#define MAX_FILES 8

#define TABLES_SIZE 0x20000UL
#define TABLES_FROM 0x200000UL
#define ROOT_AREA (EBDA + 0x10) /* The first byte of the EBDA is its size. */
#define ROOT_AREA_END (EBDA + 0x400)
#define EBDA_POINTER 0x40e /* a segment */

#define COMMAND_ALLOCATE 1
#define COMMAND_ADD_POINTER 2
#define COMMAND_ADD_CHECKSUM 3
#define ZONE_ROOT 2 /* where the root pointer is searched for */

typedef char file_name[56];

struct command {
	u32 kind;
	union {
		struct {
			file_name file;
			u32 align;
			u8 zone;
		} __attribute__((packed)) allocate;
		struct {
			file_name in, to;
			u32 offset;
			u8 size;
		} __attribute__((packed)) pointer;
		struct {
			file_name file;
			u32 offset, start, length;
		} __attribute__((packed)) checksum;
		u8 pad[124];
	};
};

struct placed {
	const char *name;
	u64 at;
	u32 size;
};
struct placement {
	struct placed files[MAX_FILES];
	u32 count;
	u64 root_area, tables, tables_end, root;
};

u64 acpi_tables_base(u64 end)
{
	return end >= TABLES_FROM ? end - TABLES_SIZE : 0;
}

static const struct placed *find(const struct placement *p, const char *name)
{
	for (u32 i = 0; i < p->count; i++)
		for (u32 n = 0; p->files[i].name[n] == name[n]; n++)
			if (!name[n])
				return &p->files[i];
	return 0;
}

static int allocate(struct placement *p, struct command *c)
{
	int root = c->allocate.zone == ZONE_ROOT;
	u64 *next = root ? &p->root_area : &p->tables, end = root ? ROOT_AREA_END : p->tables_end;
	u64 align = c->allocate.align ? c->allocate.align : 1;
	u32 size = 0;
	u16 key;

	c->allocate.file[sizeof(file_name) - 1] = 0;
	key = fw_cfg_find(c->allocate.file, &size);
	*next = (*next + align - 1) & -align;
	if (!key || p->count == MAX_FILES || *next > end || size > end - *next)
		return 0;
	fw_cfg_read(key, *next, size);
	if (root && !p->root)
		p->root = *next;
	p->files[p->count++] = (struct placed){ c->allocate.file, *next, size };
	*next += size;
	return 1;
}

static int add_pointer(const struct placement *p, const struct command *c)
{
	const struct placed *in = find(p, c->pointer.in), *to = find(p, c->pointer.to);
	u32 size = c->pointer.size;
	u64 value = 0;

	if (!in || !to || size > 8 || c->pointer.offset > in->size || size > in->size - c->pointer.offset)
		return 0;
	for (u32 i = size; i--;)
		value = value << 8 | ((u8 *)in->at)[c->pointer.offset + i];
	value += to->at;
	for (u32 i = 0; i < size; i++)
		((u8 *)in->at)[c->pointer.offset + i] = (u8)(value >> 8 * i);
	return 1;
}

static int add_checksum(const struct placement *p, const struct command *c)
{
	const struct placed *in = find(p, c->checksum.file);
	u32 start = c->checksum.start, length = c->checksum.length;
	u8 sum = 0;

	if (!in || start > in->size || length > in->size - start || c->checksum.offset >= in->size)
		return 0;
	for (u32 i = start; i < start + length; i++)
		sum += ((u8 *)in->at)[i];
	((u8 *)in->at)[c->checksum.offset] -= sum;
	return 1;
}

u64 place_acpi_tables(u64 end)
{
	struct placement p = { .count = 0, .root_area = ROOT_AREA, .tables = acpi_tables_base(end), .tables_end = end };
	struct command *c = (struct command *)SCRIPT;
	u32 size = 0;
	u16 key = fw_cfg_find("etc/table-loader", &size);
	int good = 1;

	*(volatile u16 *)EBDA_POINTER = EBDA >> 4;
	*(volatile u8 *)EBDA = (LOW_MEMORY_END - EBDA) >> 10;
	if (!key || size > SCRIPT_MAX || !p.tables)
		return 0;
	fw_cfg_read(key, SCRIPT, size);
	for (u32 i = size / sizeof(*c); i && good; i--, c++) {
		if (c->kind == COMMAND_ALLOCATE)
			good = allocate(&p, c);
		else if (c->kind == COMMAND_ADD_POINTER)
			good = add_pointer(&p, c);
		else if (c->kind == COMMAND_ADD_CHECKSUM)
			good = add_checksum(&p, c);
	}
	return good ? p.root : 0;
}
