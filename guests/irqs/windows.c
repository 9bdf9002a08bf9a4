/* SPDX-License-Identifier: GPL-2.0-or-later */
/* At which instruction a pending interrupt strikes. */
#include "irqs.h"

void window_sti(void), window_sti_cli(void), window_sti_sti(void), window_popf(void), window_iret(void), window_hlt(void),
	window_cr8(void);
extern const u8 window_sti_at[], window_sti_sti_at[], window_popf_at[], window_iret_at[], window_hlt_at[], window_out_at[],
	window_cr8_at[];

static void strike(void (*window)(void), const u8 *at)
{
	handler = end_apic;
	self_ipi(0x51);
	window();
	expect_log(0x51);
	expect("saved RIP", last_rip, (u64)at);
}

static void after_the_instruction_behind_sti(void)
{
	strike(window_sti, window_sti_at);
}

static void not_between_sti_and_cli(void)
{
	handler = end_apic;
	self_ipi(0x51);
	window_sti_cli();
	check_log(NULL, 0);
	open_window();
	expect_log(0x51);
}

/* Only an STI that sets IF has a shadow. */
static void after_a_second_sti(void)
{
	strike(window_sti_sti, window_sti_sti_at);
}

static void after_popf(void)
{
	strike(window_popf, window_popf_at);
}

static void after_iret(void)
{
	strike(window_iret, window_iret_at);
}

static void after_hlt(void)
{
	strike(window_hlt, window_hlt_at);
}

static void after_mov_to_cr8(void)
{
	handler = end_apic;
	__asm__ volatile("movq %0, %%cr8" : : "r"(15UL));
	self_ipi(0x51);
	window_cr8();
	expect_log(0x51);
	expect("saved RIP", last_rip, (u64)window_cr8_at);
}

/* OUT that raises a line is done, and the interrupt comes before the next instruction. */
static void after_out(void)
{
	handler = end_pic;
	pic_mask((u16) ~(1 << 5));
	__asm__ volatile("call window_out" : : "a"(1), "d"(LINE_PORT + 5) : "rcx", "memory");
	expect_log(0x25);
	expect("saved RIP", last_rip, (u64)window_out_at);
	lower_line(5);
}

/* IF = 0 keeps interrupts, not NMIs. */
static void nmi_without_if(void)
{
	apic_write(APIC_ICR_HIGH, 0);
	apic_write(APIC_ICR, 0x4000 | MODE_NMI);
	for (int i = 0; i < 100 && !*(volatile u64 *)&nr_log; i++)
		__asm__ volatile("pause");
	expect_log(2);
}

/* An NMI and an interrupt at once: the NMI first; here the interrupt then strikes inside nothing. */
static void nmi_before_interrupt(void)
{
	handler = end_apic;
	self_ipi(0x51);
	apic_write(APIC_ICR, 0x4000 | MODE_NMI);
	for (int i = 0; i < 100 && !*(volatile u64 *)&nr_log; i++)
		__asm__ volatile("pause");
	open_window();
	expect_log(2, 0x51);
}

static const struct test tests[] = {
	RUN(after_the_instruction_behind_sti) RUN(not_between_sti_and_cli) RUN(after_a_second_sti) RUN(after_popf)
	RUN(after_iret) RUN(after_hlt) RUN(after_mov_to_cr8) RUN_EXACT(after_out) RUN(nmi_without_if) RUN(nmi_before_interrupt)
};
const struct group window_group = { tests, ARRAY_SIZE(tests) };
