/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The matrix: every value of one entry, or of the rights of two, at every level and below leaves of
 * every size, under every setting of the control bits, for every kind of access.
 */
#ifndef MATRIX_H
#define MATRIX_H

#include "oracle.h"

struct matrix {
	struct cpu has;
	u32 step;
	bool exact;
	u64 tried, checksum;
	u32 failures;
};

void run_matrix(struct matrix *m);

#endif
