/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The way of the kernel's text_poke_bp(): a breakpoint over the first byte, then the rest, then the
 * first byte; after each step all CPUs execute a serializing instruction. Who meets the breakpoint
 * returns to the caller with BREAKPOINT. Nobody stops, and nobody may see half a constant.
 */
#include "patch.h"

#define VECTOR_SYNC 0x45
#define INT3 0xcc
#define MOV_EAX 0xb8

static u64 synced, poked;

static void on_sync(struct trap_frame *frame)
{
	(void)frame;
	serialize();
	apic_eoi();
	atomic_xadd(&synced, 1);
}

void sync_cores(void)
{
	store_release(&synced, 0UL);
	if (nr_cpus > 1)
		apic_send(0, ICR_OTHERS | ICR_ASSERT | VECTOR_SYNC);
	serialize();
	spin_until(load_acquire(&synced) == nr_cpus - 1, "all CPUs to serialize");
}

static void on_breakpoint(struct trap_frame *frame)
{
	if (frame->rip - 1 != load_acquire(&poked))
		unexpected_trap(frame);
	frame->rip = *(u64 *)frame->rsp;
	frame->rsp += 8;
	frame->rax = BREAKPOINT;
}

void poke_init(void)
{
	set_handler(VECTOR_SYNC, on_sync);
	set_handler(VECTOR_BP, on_breakpoint);
}

/*
 * The first byte, and after the step again: QEMU 7.2 forgets its translation before it stores, and
 * another CPU that translates in between keeps the old byte until the next store.
 */
static void put_first_byte(u64 at, u8 byte)
{
	put_byte(at, byte);
	sync_cores();
	put_byte(at, byte);
}

/* The steps come from different addresses; the writer itself runs the function in between. */
void patch_by_breakpoint(u64 i)
{
	u64 code = code_of(i), alias = alias_of(code);
	u64 (*function)(void) = (u64(*)(void))code;

	store_release(&poked, code);
	store_full(&version[i], version[i] + 1);
	put_first_byte(alias, INT3);
	if (function() != BREAKPOINT)
		cpu_fail("the writer does not meet its breakpoint at %p", (void *)code);
	put_constant(code, value_of(i, version[i] / 2 + 1));
	sync_cores();
	put_first_byte(alias, MOV_EAX);
	store_release(&version[i], version[i] + 1);
}
