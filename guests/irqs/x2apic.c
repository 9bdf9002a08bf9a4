/* SPDX-License-Identifier: GPL-2.0-or-later */
/* x2APIC mode, which QEMU 7.2's TCG does not have. */
#include "irqs.h"

#define ENABLE 0x800UL
#define EXTENDED 0x400UL
#define X2(reg) (0x800 + ((reg) >> 4))
#define SELF_IPI_MSR 0x83f

static u64 faults;

static void skip_fault(u64 vector, struct irq_frame *frame)
{
	if (vector == VECTOR_GP) {
		faults++;
		frame->rip += 2;
	} else if (vector != SPURIOUS) {
		wrmsr(X2(APIC_EOI), 0);
	}
}

static bool refuses(u32 index, u64 value)
{
	u64 before = faults, length = nr_log;

	wrmsr(index, value);
	nr_log = length;
	return faults > before;
}

static void enter(void)
{
	handler = skip_fault;
	wrmsr(MSR_APIC_BASE, APIC_BASE | 0x100 | ENABLE | EXTENDED);
}

static void leave(void)
{
	wrmsr(MSR_APIC_BASE, APIC_BASE | 0x100);
	wrmsr(MSR_APIC_BASE, APIC_BASE | 0x100 | ENABLE);
}

static void x2apic_registers(void)
{
	enter();
	expect("mode", rdmsr(MSR_APIC_BASE) & (ENABLE | EXTENDED), ENABLE | EXTENDED);
	expect("ID", rdmsr(X2(APIC_ID)), 0);
	expect("LDR", rdmsr(X2(APIC_LDR)), 1);
	wrmsr(X2(APIC_TPR), 0x70);
	expect("TPR", rdmsr(X2(APIC_TPR)), 0x70);
	wrmsr(X2(APIC_TPR), 0);
	leave();
}

static void x2apic_interrupts(void)
{
	enter();
	wrmsr(X2(APIC_SVR), 0x100 | SPURIOUS);
	wrmsr(SELF_IPI_MSR, 0x51);
	wrmsr(X2(APIC_ICR), 0x61);
	wrmsr(X2(APIC_ICR), 7UL << 32 | 0x71);
	open_window();
	open_window();
	expect_log(0x61, 0x51);
	wrmsr(X2(APIC_LVT_TIMER), 0x81);
	wrmsr(X2(APIC_INITIAL), 1000);
	expect("the timer came", wait_for(1), true);
	expect_log(0x81);
	leave();
}

static void x2apic_refuses(void)
{
	enter();
	expect("xAPIC mode directly", refuses(MSR_APIC_BASE, APIC_BASE | 0x100 | ENABLE), true);
	expect("ID", refuses(X2(APIC_ID), 0), true);
	expect("a value for EOI", refuses(X2(APIC_EOI), 1), true);
	expect("upper half of TPR", refuses(X2(APIC_TPR), 1UL << 32), true);
	expect("reserved bits of SVR", refuses(X2(APIC_SVR), 1UL << 20), true);
	expect("DFR", refuses(X2(APIC_DFR), 0), true);
	expect("ICR2", refuses(X2(APIC_ICR_HIGH), 0), true);
	expect("a large self-IPI", refuses(SELF_IPI_MSR, 0x100), true);
	leave();
	expect("x2APIC from disabled", (wrmsr(MSR_APIC_BASE, APIC_BASE | 0x100), refuses(MSR_APIC_BASE, APIC_BASE | 0x100 | EXTENDED)), true);
	leave();
	expect("an MSR in xAPIC mode", refuses(X2(APIC_TPR), 0), true);
}

static const struct test tests[] = {
	RUN_EXACT(x2apic_registers) RUN_EXACT(x2apic_interrupts) RUN_EXACT(x2apic_refuses)
};
const struct group x2apic_group = { tests, ARRAY_SIZE(tests) };
