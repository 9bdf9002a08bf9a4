/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of smp-shootdown share. One CPU at a time is the writer: it changes pages of the
 * window, and shoots down what other TLBs may hold. The others access all the pages meanwhile.
 */
#ifndef SHOOTDOWN_H
#define SHOOTDOWN_H

#include "guest.h"
#include "smp/apic.h"
#include "smp/atomic.h"
#include "smp/irq.h"
#include "smp/smp.h"

#define PT_GLOBAL (1UL << 8)
#define GONE 0UL

/*
 * A page of the window. `sequence` is odd while a change is under way; who finds the same even number
 * before and after an access must have seen the page as `entry` (GONE: not present) says.
 */
struct page {
	u64 sequence, entry;
};

enum flush { BY_INVLPG, BY_CR3, BY_PGE, NR_FLUSHES };

extern u64 pages, root;
extern struct page *window;

static inline u64 gva_of(u64 i)
{
	return FIRST_GVA + i * PAGE_SIZE;
}

/* Every fourth page is global: a write to CR3 leaves it in the TLB. */
static inline bool is_global(u64 i)
{
	return i % 4 == 3;
}

/* frames.c: a frame holds its tag, in its first and last word and as code that returns it. */
u64 frame_new(void);
u64 frame_tag(u64 frame);

/* Fill a frame that is no longer mapped with poison; frame_new() and the end verify that it stays. */
void frame_retire(u64 frame);
void check_retired(void);

/* flush.c: on all CPUs, forget the pages first, first + 1, ... first + n - 1; returns when all have. */
void shootdown(u64 first, u64 n, enum flush how);
void shootdown_init(void);

/* access.c: access every page of the window once in every way, as the CPU that runs. */
void access_init(void);
void access_all(void);

/* One page, of which nothing changes at the moment; true if it was as it must be. */
bool access_page(u64 i);

#endif
