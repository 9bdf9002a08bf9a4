/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One-instruction wrappers: port I/O, control registers, TLB, serialization. */
#ifndef CPU_H
#define CPU_H

#include "types.h"

static inline void outb(u8 value, u16 port)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outl(u32 value, u16 port)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 inb(u16 port)
{
	u8 value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline u64 read_cr2(void)
{
	u64 value;

	__asm__ volatile("mov %%cr2, %0" : "=r"(value));
	return value;
}

static inline u64 read_cr3(void)
{
	u64 value;

	__asm__ volatile("mov %%cr3, %0" : "=r"(value));
	return value;
}

static inline void write_cr3(u64 value)
{
	__asm__ volatile("mov %0, %%cr3" : : "r"(value) : "memory");
}

static inline void invlpg(u64 gva)
{
	__asm__ volatile("invlpg (%0)" : : "r"(gva) : "memory");
}

/*
 * CPUID is a serializing instruction (SDM vol. 3, 9.3): code written through another address is
 * seen after it.
 */
static inline void serialize(void)
{
	u32 eax = 0, ecx = 0;

	__asm__ volatile("cpuid" : "+a"(eax), "+c"(ecx) : : "ebx", "edx", "memory");
}

#endif
