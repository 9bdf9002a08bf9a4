/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The libc pieces that the compiler may call by itself. */
#ifndef STRING_H
#define STRING_H

#include "types.h"

void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);

#endif
