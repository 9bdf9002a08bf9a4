/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One access through the window, compared with the oracle. */
#ifndef CHECK_H
#define CHECK_H

#include "oracle.h"

/* Ways: four kinds at CPL 0 and 3 each, and the two loads of a descriptor. */
#define WAYS (2 * LOAD_DESCRIPTOR + 2)

/* churn: how many other pages are stored to after each access, so that a small host takes pages away. */
struct tally {
	bool exact;
	u32 failures, churn;
	u64 tried, checksum;
};

/* QEMU 7.2 has pages of 1 GiB even if CPUID says that it has not. */
static inline int highest_leaf(const struct tally *t, const struct cpu *cpu)
{
	return cpu->gigabyte || t->exact ? 3 : 2;
}

/*
 * An access while the entries of the window are `entries` and the control bits `cpu`: error code,
 * CR2, data, and the entries afterwards. `n` makes the value that is stored.
 */
void check_access(struct tally *t, const struct cpu *cpu, const u64 *entries, u32 way, u32 n);

#endif
