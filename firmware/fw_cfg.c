// SPDX-License-Identifier: GPL-2.0-or-later
#include "fw_cfg.h"

#define FW_CFG_SELECT 0x510
#define FW_CFG_DATA 0x511
#define FW_CFG_FILE_DIR 0x19

struct fw_cfg_file {
	u8 size[4], select[2], reserved[2];
	char name[56];
};

/* The compiler asks for it where a structure is to be 0. */
void *memset(void *to, int value, u64 size)
{
	void *at = to;

	__asm__ volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(value) : "memory");
	return to;
}

void fw_cfg_continue(u64 to, u64 size)
{
	__asm__ volatile("rep insb" : "+D"(to), "+c"(size) : "d"((u16)FW_CFG_DATA) : "memory");
}

void fw_cfg_read(u16 key, u64 to, u64 size)
{
	__asm__ volatile("outw %0, %1" : : "a"(key), "Nd"((u16)FW_CFG_SELECT));
	fw_cfg_continue(to, size);
}

u64 fw_cfg_number(u16 key, u64 size)
{
	u64 value = 0;

	fw_cfg_read(key, (u64)&value, size);
	return value;
}

static u32 big_endian(const u8 *bytes, int count)
{
	u32 value = 0;

	for (int i = 0; i < count; i++)
		value = value << 8 | bytes[i];
	return value;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

u16 fw_cfg_find(const char *name, u32 *size)
{
	struct fw_cfg_file file;
	u8 count[4];

	fw_cfg_read(FW_CFG_FILE_DIR, (u64)count, sizeof(count));
	for (u32 i = big_endian(count, 4); i; i--) {
		fw_cfg_continue((u64)&file, sizeof(file));
		file.name[sizeof(file.name) - 1] = 0;
		*size = big_endian(file.size, 4);
		if (same(file.name, name))
			return (u16)big_endian(file.select, 2);
	}
	return 0;
}
