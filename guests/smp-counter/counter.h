/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the two halves of smp-counter share: counters, one on each of `pages` pages, and how a method
 * is run on all CPUs at once. Odd increments all go to the first counter, for which all CPUs contend,
 * even ones to each counter in turn.
 */
#ifndef COUNTER_H
#define COUNTER_H

#include "guest.h"
#include "smp/atomic.h"
#include "smp/smp.h"
#include "smp/spinlock.h"

/* Increments number first, first + 1, ... first + n - 1, by the CPU that runs. */
typedef void (*method)(u64 first, u64 n);

/*
 * Offset of the counter in its page: 64-byte aligned; across a cache line; across the end of the
 * page, 4 bytes on the next one.
 */
enum place { ALIGNED = 0, ACROSS_LINE = 188, ACROSS_PAGE = 4092 };

extern u64 count, locked, pages, checksum;
extern enum place place;

static inline u64 *counter_on(u64 page)
{
	return (u64 *)(FIRST_GVA + page * PAGE_SIZE + place);
}

/* For increment number k. */
static inline u64 *counter_of(u64 k)
{
	return counter_on(k % 2 ? 0 : k / 2 % pages);
}

/* How many of `total` increments go to the counter on a page. */
static inline u64 visits(u64 total, u64 page)
{
	u64 even = (total + 1) / 2;

	return even / pages + (page < even % pages) + (page ? 0 : total / 2);
}

/* Run the method on all CPUs, which begin together. */
void run_method(method run, u64 total);

/*
 * Every counter must be what `expected` makes of the number of its increments, and becomes 0 again;
 * print the line.
 */
void check_counters(const char *name, u64 total, u64 (*expected)(u64 increments));
u64 once(u64 increments);

/* xadd, cmpxchg and the other instructions that compute in one go. */
void count_by_instructions(void);

#endif
