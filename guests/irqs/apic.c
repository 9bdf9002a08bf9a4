/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The local APIC: self-IPIs, priorities, EOI, TPR and CR8, errors. */
#include "irqs.h"

static u64 get_cr8(void)
{
	u64 value;

	__asm__ volatile("movq %%cr8, %0" : "=r"(value));
	return value;
}

static void set_cr8(u64 value)
{
	__asm__ volatile("movq %0, %%cr8" : : "r"(value) : "memory");
}

static void apic_requests_and_service(void)
{
	self_ipi(0x51);
	expect("IRR", apic_bit(APIC_IRR, 0x51), 1);
	expect("ISR", apic_bit(APIC_ISR, 0x51), 0);
	open_window();
	expect_log(0x51);
	expect("IRR in service", apic_bit(APIC_IRR, 0x51), 0);
	expect("ISR in service", apic_bit(APIC_ISR, 0x51), 1);
	expect("PPR", apic_read(APIC_PPR) & 0xf0, 0x50);
	apic_eoi();
	expect("ISR after EOI", apic_bit(APIC_ISR, 0x51), 0);
	expect("PPR after EOI", apic_read(APIC_PPR), 0);
}

/* One of a vector waits, whatever the number of requests; one more while it is in service. */
static void apic_one_of_a_vector(void)
{
	handler = end_apic;
	for (int i = 0; i < 3; i++)
		self_ipi(0x51);
	open_window();
	open_window();
	expect_log(0x51);
	handler = NULL;
	self_ipi(0x51);
	open_window();
	self_ipi(0x51);
	self_ipi(0x51);
	open_window();
	expect_log(0x51);
	handler = end_apic;
	apic_eoi();
	open_window();
	expect_log(0x51);
}

static void apic_priorities(void)
{
	handler = end_apic;
	self_ipi(0x51);
	self_ipi(0xe1);
	self_ipi(0x41);
	self_ipi(0x5f);
	self_ipi(0x30);
	for (int i = 0; i < 5; i++)
		open_window();
	expect_log(0xe1, 0x5f, 0x51, 0x41, 0x30);
}

static void nest_by_class(u64 vector, struct irq_frame *frame)
{
	if (vector == 0x51) {
		self_ipi(0x5e);
		self_ipi(0x61);
		self_ipi(0x41);
		open_window();
		open_window();
	}
	end_apic(vector, frame);
}

/* A higher class interrupts a handler, its own class and lower ones wait for EOI. */
static void apic_nesting(void)
{
	handler = nest_by_class;
	self_ipi(0x51);
	for (int i = 0; i < 3; i++)
		open_window();
	expect_log(0x51, 0x61, 0x5e, 0x41);
}

static void apic_eoi_is_of_the_highest(void)
{
	self_ipi(0x51);
	open_window();
	self_ipi(0x61);
	open_window();
	expect_log(0x51, 0x61);
	apic_eoi();
	expect("ISR 61", apic_bit(APIC_ISR, 0x61), 0);
	expect("ISR 51", apic_bit(APIC_ISR, 0x51), 1);
	apic_eoi();
	expect("ISR 51 after the second", apic_bit(APIC_ISR, 0x51), 0);
}

static void apic_tpr(void)
{
	handler = end_apic;
	apic_write(APIC_TPR, 0x50);
	expect("PPR", apic_read(APIC_PPR), 0x50);
	self_ipi(0x5f);
	expect_nothing();
	self_ipi(0x60);
	open_window();
	expect_log(0x60);
	apic_write(APIC_TPR, 0x4f);
	open_window();
	expect_log(0x5f);
}

static void apic_cr8(void)
{
	handler = end_apic;
	set_cr8(6);
	expect("TPR", apic_read(APIC_TPR), 0x60);
	expect("CR8", get_cr8(), 6);
	self_ipi(0x6f);
	self_ipi(0x71);
	open_window();
	expect_log(0x71);
	apic_write(APIC_TPR, 0x3a);
	expect("CR8 after TPR was written", get_cr8(), 3);
	open_window();
	expect_log(0x6f);
	set_cr8(2);
	expect("TPR after CR8 was written", apic_read(APIC_TPR), 0x20);
	set_cr8(15);
	self_ipi(0xf0);
	expect_nothing();
	set_cr8(14);
	open_window();
	expect_log(0xf0);
}

static void apic_registers(void)
{
	expect("ID", apic_read(APIC_ID), 0);
	expect("version", apic_read(APIC_VERSION) & 0xf0, 0x10);
	apic_write(APIC_LDR, 0xa5ffffff);
	expect("LDR", apic_read(APIC_LDR), 0xa5000000);
	apic_write(APIC_DFR, 0x0fffffff);
	expect("DFR", apic_read(APIC_DFR), 0x0fffffff);
	expect("ICR delivery status", apic_read(APIC_ICR) & 0x1000, 0);
	apic_write(APIC_LVT_LINT1, 0x5432);
	expect("LVT LINT1", apic_read(APIC_LVT_LINT1) & ~0x5000U, 0x432);
}

static void base_msr(void)
{
	u64 base = rdmsr(MSR_APIC_BASE);

	expect("base", base & ~0xfffUL, APIC_BASE);
	expect("enabled, of the boot CPU", base & 0x900, 0x900);
}

/* Destinations: physical 0, all of them, a logical one; others hear nothing. */
static void ipi_destinations(void)
{
	static const struct {
		u32 high, low;
		bool wanted;
	} sent[] = {
		{ 0, 0x51, true },		   { 1U << 24, 0x51, false },	{ 0xffU << 24, 0x51, true },
		{ 1U << 24, 0x851, true },	   { 2U << 24, 0x851, false },	{ 3U << 24, 0x851, true },
		{ 0, 0x80051, true },		   { 0, 0xc0051, false },	{ 0, 0x40051, true },
	};

	handler = end_apic;
	for (u64 i = 0; i < ARRAY_SIZE(sent); i++) {
		apic_write(APIC_ICR_HIGH, sent[i].high);
		apic_write(APIC_ICR, 0x4000 | sent[i].low);
		open_window();
		expect("received", nr_log, sent[i].wanted);
		nr_log = 0;
	}
}

/* Cluster model: the upper half of the LDR is the cluster. */
static void ipi_to_a_cluster(void)
{
	handler = end_apic;
	apic_write(APIC_DFR, 0x0fffffff);
	apic_write(APIC_LDR, 0x24U << 24);
	for (u32 destination = 0; destination < 0x40; destination++) {
		apic_write(APIC_ICR_HIGH, destination << 24);
		apic_write(APIC_ICR, 0x4000 | 0x851);
		open_window();
		if (!expect("received", nr_log, destination >> 4 == 2 && destination & 4))
			return;
		nr_log = 0;
	}
}

/* Software disabled: all LVT entries are masked and stay so, IPIs are not taken. */
static void apic_software_disable(void)
{
	handler = end_apic;
	apic_write(APIC_LVT_TIMER, 0x51);
	apic_write(APIC_SVR, SPURIOUS);
	expect("LVT timer", apic_read(APIC_LVT_TIMER), MASKED | 0x51);
	apic_write(APIC_LVT_TIMER, 0x51);
	expect("LVT timer after a write", apic_read(APIC_LVT_TIMER), MASKED | 0x51);
	self_ipi(0x61);
	expect_nothing();
	apic_write(APIC_SVR, 0x100 | SPURIOUS);
	expect_nothing();
	expect("LVT timer after enabling", apic_read(APIC_LVT_TIMER), MASKED | 0x51);
}

/* Errors are collected and shown by a write to ESR; a new one interrupts. */
static void apic_errors(void)
{
	handler = end_apic;
	apic_write(APIC_ESR, 0);
	apic_write(APIC_ESR, 0);
	apic_write(APIC_LVT_ERROR, 0x71);
	self_ipi(5);
	open_window();
	expect_log(0x71);
	expect("ESR before a write", apic_read(APIC_ESR), 0);
	apic_write(APIC_ESR, 0);
	expect("ESR", apic_read(APIC_ESR) & 0x20, 0x20);
	apic_write(APIC_ESR, 0);
	expect("ESR after another write", apic_read(APIC_ESR), 0);
	(void)apic_read(0x10);
	apic_write(APIC_ESR, 0);
	expect("ESR of an illegal register", apic_read(APIC_ESR), 0x80);
}

static const struct test tests[] = {
	RUN(apic_requests_and_service) RUN(apic_one_of_a_vector) RUN(apic_priorities) RUN(apic_nesting)
	RUN(apic_eoi_is_of_the_highest) RUN(apic_tpr) RUN(apic_cr8) RUN(apic_registers) RUN(base_msr)
	RUN(ipi_destinations) RUN(ipi_to_a_cluster) RUN_EXACT(apic_software_disable) RUN_EXACT(apic_errors)
};
const struct group apic_group = { tests, ARRAY_SIZE(tests) };
