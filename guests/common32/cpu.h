/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One-instruction wrappers: ports, control registers, MSRs, TLB. */
#ifndef CPU_H
#define CPU_H

#include "types.h"

#define CR0_WP (1u << 16)
#define CR0_PG (1u << 31)
#define CR4_PSE (1u << 4)
#define CR4_PAE (1u << 5)
#define MSR_EFER 0xc0000080u
#define EFER_NXE (1u << 11)

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

#define CONTROL_REGISTER(name)                                                    \
	static inline u32 read_##name(void)                                       \
	{                                                                         \
		u32 value;                                                        \
                                                                                  \
		__asm__ volatile("movl %%" #name ", %0" : "=r"(value));           \
		return value;                                                     \
	}                                                                         \
	static inline void write_##name(u32 value)                                \
	{                                                                         \
		__asm__ volatile("movl %0, %%" #name : : "r"(value) : "memory");  \
	}
CONTROL_REGISTER(cr0)
CONTROL_REGISTER(cr2)
CONTROL_REGISTER(cr3)
CONTROL_REGISTER(cr4)

static inline void invlpg(u32 gva)
{
	__asm__ volatile("invlpg (%0)" : : "r"(gva) : "memory");
}

static inline void set_efer(u32 value)
{
	__asm__ volatile("wrmsr" : : "c"(MSR_EFER), "a"(value), "d"(0) : "memory");
}

#endif
