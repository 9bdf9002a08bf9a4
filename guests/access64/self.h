/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A root that has itself as an entry: every table is then also a page, and every table above it a table of its own. */
#ifndef SELF_H
#define SELF_H

#include "check.h"

void run_self(struct tally *t, const struct cpu *has, u32 steps);

#endif
