/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "churn.h"

static struct {
	u64 gva, error_code;
	u64 *entry, fixed;
	bool armed;
} expected;

static u64 taken;

static void on_page_fault(struct trap_frame *frame)
{
	u64 gva = read_cr2();

	if (!expected.armed || gva != expected.gva || frame->error_code != expected.error_code)
		unexpected_trap(frame);
	expected.armed = false;
	taken++;
	*expected.entry = expected.fixed;
	invlpg(gva);
}

void begin_fault(u64 gva, u64 error_code, u64 *entry, u64 fixed)
{
	set_handler(VECTOR_PF, on_page_fault);
	expected.gva = gva;
	expected.error_code = error_code;
	expected.entry = entry;
	expected.fixed = fixed;
	expected.armed = true;
	__asm__ volatile("" : : : "memory");
}

void end_fault(void)
{
	__asm__ volatile("" : : : "memory");
	if (expected.armed)
		fail("no page fault at %p, error 0x%lx", (void *)expected.gva, expected.error_code);
}

u64 faults_taken(void)
{
	return taken;
}

static const u64 stamped[] = { 0, PAGE_SIZE / 2 - 8, PAGE_SIZE - 8 };

void stamp(u64 address, u64 tag)
{
	for (u64 i = 0; i < ARRAY_SIZE(stamped); i++)
		*(volatile u64 *)(address + stamped[i]) = tag + i;
}

void check_stamp(u64 address, u64 tag)
{
	for (u64 i = 0; i < ARRAY_SIZE(stamped); i++) {
		u64 word = *(volatile u64 *)(address + stamped[i]);

		if (word != tag + i)
			fail("at %p: 0x%016lx, not 0x%016lx", (void *)(address + stamped[i]), word, tag + i);
	}
}

void put_code(u64 address, u32 value)
{
	volatile u8 *code = (u8 *)address;

	code[0] = 0xb8;
	for (int i = 0; i < 4; i++)
		code[1 + i] = (u8)(value >> 8 * i);
	code[5] = 0xc3;
}

void run_code(u64 address, u32 value)
{
	u32 returned = ((u32(*)(void))address)();

	if (returned != value)
		fail("the code at %p returns 0x%08x, not 0x%08x", (void *)address, returned, value);
}
