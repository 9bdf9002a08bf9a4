/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The matrix: every value of one entry, or of the rights of two, at every level and below leaves of
 * every size, under every setting of the control bits, for every kind of access.
 */
#ifndef MATRIX_H
#define MATRIX_H

#include "check.h"

void run_matrix(struct tally *m, const struct cpu *has, u32 step);

#endif
