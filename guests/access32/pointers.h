/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The page-directory-pointer registers of PAE paging: when they are loaded, and from what they are not (SDM 4.4.1). */
#ifndef POINTERS_H
#define POINTERS_H

#include "matrix.h"

void run_pointers(struct matrix *m);

#endif
