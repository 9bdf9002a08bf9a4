/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Output: COM1, polled, and a printf over it. */
#ifndef SERIAL_H
#define SERIAL_H

#include "types.h"

void serial_init(void);
void serial_putc(char c);

/* %d %i %u %x %c %s %p %%, with l for 64 bits, a width, and the flags 0 and -. */
void printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
void vprintf(const char *format, va_list args);

#endif
