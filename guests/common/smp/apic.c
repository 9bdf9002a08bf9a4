/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "apic.h"

#include "irq.h"
#include "processor.h"
#include "smp.h"

#define CPUID_X2APIC (1u << 21)
#define BASE_X2APIC (1UL << 10)
#define BASE_ENABLE (1UL << 11)
#define MSR_X2APIC 0x800
#define SVR_ENABLE (1u << 8)

static bool x2apic;

bool apic_has_x2apic(void)
{
	return cpuid_ecx(1) & CPUID_X2APIC;
}

void apic_use_x2apic(void)
{
	x2apic = true;
}

bool apic_is_x2apic(void)
{
	return x2apic;
}

u32 apic_read(u32 offset)
{
	if (x2apic)
		return (u32)rdmsr(MSR_X2APIC + (offset >> 4));
	return *(volatile u32 *)(APIC_BASE + offset);
}

void apic_write(u32 offset, u32 value)
{
	if (x2apic)
		wrmsr(MSR_X2APIC + (offset >> 4), value);
	else
		*(volatile u32 *)(APIC_BASE + offset) = value;
}

void apic_enable(void)
{
	u64 base = rdmsr(MSR_APIC_BASE) | BASE_ENABLE;

	wrmsr(MSR_APIC_BASE, base);
	if (x2apic)
		wrmsr(MSR_APIC_BASE, base | BASE_X2APIC);
	apic_write(APIC_SVR, SVR_ENABLE | VECTOR_SPURIOUS);
	apic_write(APIC_TPR, 0);
	apic_write(APIC_LVT_TIMER, APIC_LVT_MASKED | VECTOR_SPURIOUS);
	apic_write(APIC_LVT_LINT0, APIC_LVT_MASKED | VECTOR_SPURIOUS);
}

u32 apic_id(void)
{
	return x2apic ? apic_read(APIC_ID) : apic_read(APIC_ID) >> 24;
}

void apic_eoi(void)
{
	apic_write(APIC_EOI, 0);
}

/*
 * An interrupt handler that sends, too, must not come between the two halves of an xAPIC's ICR. A
 * write of the x2APIC's does not order stores to memory before it (SDM vol. 3, 11.12.3).
 */
void apic_send(u32 destination, u32 command)
{
	u64 flags = irq_save();

	if (x2apic) {
		__asm__ volatile("mfence; lfence" : : : "memory");
		wrmsr(MSR_X2APIC + (APIC_ICR >> 4), (u64)destination << 32 | command);
	} else {
		apic_write(APIC_ICR_HIGH, destination << 24);
		apic_write(APIC_ICR, command);
		spin_until(!(apic_read(APIC_ICR) & ICR_BUSY), "an IPI to go");
	}
	irq_restore(flags);
}
