/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of smp-smc share. Function i is `mov $value, %eax; ret` on page i; every 16th one
 * begins so near the end of its page that it ends on the next. All are mapped twice.
 */
#ifndef PATCH_H
#define PATCH_H

#include "guest.h"
#include "smp/apic.h"
#include "smp/atomic.h"
#include "smp/irq.h"
#include "smp/smp.h"

#define CODE_SIZE 6
#define NR_HOT 48 /* functions that are run while they are rewritten */

extern u64 pages, first;

/*
 * How often a function has been rewritten, twice: odd while it is being rewritten. Its value is
 * value_of(i, version / 2).
 */
extern u64 *version;

static inline u64 code_of(u64 i)
{
	u64 offset = i % 16 == 15 ? PAGE_SIZE - 1 - i / 16 % 5 : 64 + i * 208 % (PAGE_SIZE - 128);

	return first + i * PAGE_SIZE + offset;
}

/* The other mapping. */
static inline u64 alias_of(u64 code)
{
	return code - first + FIRST_GVA;
}

static inline u32 value_of(u64 i, u64 generation)
{
	return (u32)mix(i + (generation << 40));
}

static inline void put_byte(u64 at, u8 byte)
{
	*(volatile u8 *)at = byte;
}

/* The constant, a byte at a time as it may lie across two pages. */
static inline void put_constant(u64 at, u32 value)
{
	for (u64 k = 0; k < 4; k++)
		put_byte(at + 1 + k, (u8)(value >> 8 * k));
}

/* stop.c and poke.c: rewrite one function while the others run it. */
void patch_stopped(u64 i);
void patch_by_breakpoint(u64 i);
void stop_init(void);
void poke_init(void);

/* What a call gives while the function's first byte is a breakpoint. */
#define BREAKPOINT (1UL << 32)

/* IPI to all others, each of which executes a serializing instruction before this returns. */
void sync_cores(void);

#endif
