/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The few types that every file of the guests' runtime uses. */
#ifndef TYPES_H
#define TYPES_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long s64;

#define KIB 1024UL
#define MIB (1024UL * KIB)
#define PAGE_SIZE 4096UL
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define DIV_ROUND_UP(n, d) (((n) + (d) - 1) / (d))

static inline u64 page_align(u64 address)
{
	return (address + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
}

static inline u64 min_u64(u64 a, u64 b)
{
	return a < b ? a : b;
}

#endif
