/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Memory above 4 GiB, which 32-bit entries reach by PSE-36 and PAE's by their width. */
#ifndef HIGH_H
#define HIGH_H

#include "matrix.h"

/* Needs RAM at 4 GiB + LARGE_FRAME. */
void run_high(struct matrix *m);

#endif
