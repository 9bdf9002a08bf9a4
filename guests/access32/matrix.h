/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Every value of both entries under every setting of the control bits, for every kind of access. */
#ifndef MATRIX_H
#define MATRIX_H

#include "../access64/oracle.h"

/* churn: how many other pages are stored to after each access, so that a small host takes pages away. */
struct matrix {
	struct cpu has;
	u32 step, churn, tried, failures;
	bool exact;
	u64 checksum;
};

/* CR0.WP, EFER.NXE, CR4.PSE, SMEP and SMAP as in `cpu`. */
void set_control(const struct cpu *cpu, const struct cpu *has);

/* With m->has.levels 0 there is no paging, and everything is allowed under every setting. */
void run_matrix(struct matrix *m);

#endif
