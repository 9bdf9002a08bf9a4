/* SPDX-License-Identifier: GPL-2.0-or-later */
/* More one-instruction wrappers: MSRs, CPUID, CR4, interrupts on and off, waiting. */
#ifndef SMP_PROCESSOR_H
#define SMP_PROCESSOR_H

#include "types.h"

#define MSR_APIC_BASE 0x1b
#define MSR_EFER 0xc0000080
#define MSR_GS_BASE 0xc0000101

#define CR4_PGE (1UL << 7)
#define RFLAGS_IF (1UL << 9)

static inline u64 rdmsr(u32 msr)
{
	u32 low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return (u64)high << 32 | low;
}

static inline void wrmsr(u32 msr, u64 value)
{
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

/* ECX of a CPUID leaf. */
static inline u32 cpuid_ecx(u32 leaf)
{
	u32 ecx = 0;

	__asm__ volatile("cpuid" : "+a"(leaf), "+c"(ecx) : : "ebx", "edx", "memory");
	return ecx;
}

static inline u64 read_cr0(void)
{
	u64 value;

	__asm__ volatile("mov %%cr0, %0" : "=r"(value));
	return value;
}

static inline u64 read_cr4(void)
{
	u64 value;

	__asm__ volatile("mov %%cr4, %0" : "=r"(value));
	return value;
}

static inline void write_cr4(u64 value)
{
	__asm__ volatile("mov %0, %%cr4" : : "r"(value) : "memory");
}

static inline void irq_enable(void)
{
	__asm__ volatile("sti" : : : "memory");
}

static inline void irq_disable(void)
{
	__asm__ volatile("cli" : : : "memory");
}

/* Disable interrupts; the flags for irq_restore(). */
static inline u64 irq_save(void)
{
	u64 flags;

	__asm__ volatile("pushfq; popq %0; cli" : "=r"(flags) : : "memory");
	return flags;
}

static inline void irq_restore(u64 flags)
{
	if (flags & RFLAGS_IF)
		irq_enable();
}

/*
 * Enable interrupts and halt. STI takes effect after the next instruction, so an interrupt that came
 * before still ends the HLT (SDM vol. 2, STI).
 */
static inline void irq_enable_and_halt(void)
{
	__asm__ volatile("sti; hlt" : : : "memory");
}

static inline void cpu_relax(void)
{
	__asm__ volatile("pause" : : : "memory");
}

#endif
