/* SPDX-License-Identifier: GPL-2.0-or-later */
/* COM1, polled, and a small printf: %c %s %d %u %x, field width with leading zeros, and %L for a u64 in 16 digits. */
#ifndef CONSOLE_H
#define CONSOLE_H

#include "types.h"

void console_init(void);
void console_putc(char c);
void vprintf(const char *format, va_list args);
void printf(const char *format, ...);

#endif
