/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A walk through the states that the matrix has no order for. Each step changes an entry, or control
 * bits, or CR3, and then tries accesses through some of the addresses that share tables: upper
 * entries with different rights above one table, several entries that map one large page. Entries
 * are stored in many ways, also through a second mapping of their table. Nothing is invalidated
 * unless the manual wants it.
 */
#ifndef WALK_H
#define WALK_H

#include "check.h"

void run_walk(struct tally *t, const struct cpu *has, u32 steps);

#endif
