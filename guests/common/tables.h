/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What idt.c and smp/ know of the tables: a gate, a TSS, what LGDT and LIDT read (SDM vol. 3, chapters 6 to 8). */
#ifndef TABLES_H
#define TABLES_H

#include "types.h"

#define IST_DF 1

struct gate {
	u16 offset_low, selector;
	u8 ist, type;
	u16 offset_mid;
	u32 offset_high, reserved;
};

struct tss {
	u32 reserved0;
	u64 rsp[3], reserved1, ist[7], reserved2;
	u16 reserved3, iomap_base;
} __attribute__((packed));

struct table_register {
	u16 limit;
	u64 base;
} __attribute__((packed));

#endif
